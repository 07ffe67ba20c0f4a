// The parts of Flyte's messages that are read in binary: the lists of actions, which are long.
// What follows the equals sign is JSON, which the tests compare with Flyte's descriptors.
export const SCHEMA = {
  "flyteidl2.workflow.WatchActionsResponse": {
    "1": ["enriched_actions", "repeated flyteidl2.workflow.EnrichedAction"]
  },
  "flyteidl2.workflow.EnrichedAction": {
    "1": ["action", "flyteidl2.workflow.Action"],
    "3": ["children_phase_counts", "counts"]
  },
  "flyteidl2.workflow.Action": {
    "1": ["id", "flyteidl2.common.ActionIdentifier"],
    "2": ["metadata", "flyteidl2.workflow.ActionMetadata"],
    "3": ["status", "flyteidl2.workflow.ActionStatus"]
  },
  "flyteidl2.common.ActionIdentifier": {
    "2": ["name", "string"]
  },
  "flyteidl2.workflow.ActionMetadata": {
    "3": ["parent", "string"],
    "5": ["group", "string"],
    "7": ["task", "flyteidl2.workflow.TaskActionMetadata"],
    "8": ["trace", "flyteidl2.workflow.TraceActionMetadata"],
    "9": ["condition", "flyteidl2.workflow.ConditionActionMetadata"],
    "10": ["action_type", "number"],
    "13": ["funtion_name", "string"]
  },
  "flyteidl2.workflow.TaskActionMetadata": {
    "1": ["id", "flyteidl2.task.TaskIdentifier"],
    "2": ["task_type", "string"],
    "3": ["short_name", "string"]
  },
  "flyteidl2.task.TaskIdentifier": {
    "4": ["name", "string"]
  },
  "flyteidl2.workflow.TraceActionMetadata": {
    "1": ["name", "string"]
  },
  "flyteidl2.workflow.ConditionActionMetadata": {
    "1": ["name", "string"]
  },
  "flyteidl2.workflow.ActionStatus": {
    "1": ["phase", "number"],
    "2": ["start_time", "time"],
    "3": ["end_time", "time"],
    "4": ["attempts", "number"],
    "5": ["cache_status", "number"]
  }
};
