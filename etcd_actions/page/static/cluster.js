// The cluster: health, members, lag, rates, queues, the leader, dead letters.
import { follow, lines } from "./connect.js";
import { announce, fill, h, svg } from "./dom.js";
import { duration, plural, when } from "./format.js";

const KEPT = 90;
const CHECKS = {
  draining: "Stays up",
  listed: "First list read",
  stream: "etcd's stream",
  handlers: "Handlers",
  contained: "No failures parked",
  etcd: "etcd answers",
  values: "Values readable",
  recording: "Ends recorded",
};

export function clusterView({ main, status, signal }) {
  const samples = [];
  let health = "";
  const content = h("div", { class: "cards" }, h("p", { class: "quiet" }, "Loading…"));
  const about = h("span", { class: "count" });
  fill(main, h("div", { class: "bar" }, h("h1", {}, "Cluster"), about), content);
  follow({
    signal,
    open: (stop) => lines("/page/cluster", stop),
    report: (how, error) => {
      status(how, error);
      if (how === "failed") fill(content, h("p", { class: "problem" }, error.code === "not_found" ? "This service does not report its state." : error.message));
    },
    each: (state) => {
      if (state === null) return;
      samples.push(state);
      if (samples.length > KEPT) samples.shift();
      draw(state);
    },
  });

  function draw(state) {
    const failing = state.checks.filter((each) => each.reason);
    const now = failing.some((each) => each.vital) ? "not ready" : failing.length > 0 ? "degraded" : "ready";
    if (health !== "" && health !== now) announce(`The process is ${now}`);
    health = now;
    fill(about, `etcd-actions ${state.version} · ${when(state.at)}`);
    const scroll = main.scrollTop;
    fill(content, healthCard(state, now), membersCard(state), watchCard(state), shardsCard(state), ratesCard(), queuesCard(state), executorCard(state), lettersCard(state));
    main.scrollTop = scroll;
  }

  function card(title, ...inside) {
    return h("section", { class: "card", "aria-label": title }, h("h2", {}, title), ...inside);
  }

  function pairs(...found) {
    return h(
      "dl",
      { class: "pairs" },
      found.filter((each) => each !== null).map(([name, value, bad]) => [h("dt", {}, name), h("dd", { class: bad ? "bad" : null }, value)]),
    );
  }

  function healthCard(state, now) {
    return card(
      "Health",
      h("p", { class: `verdict ${now.replace(" ", "-")}` }, now),
      h(
        "ul",
        { class: "checks" },
        state.checks.map((each) => h("li", { class: each.reason ? (each.vital ? "bad" : "warn") : "good" }, h("span", { class: "mark", "aria-hidden": "true" }, each.reason ? "✗" : "✓"), h("span", {}, CHECKS[each.name] || each.name, each.reason ? h("span", { class: "why" }, each.reason) : null))),
      ),
    );
  }

  function membersCard({ members }) {
    const up = members.filter((each) => each.up).length;
    return card(
      "etcd",
      h("p", { class: up * 2 > members.length ? "quiet" : "bad" }, `${up} of ${plural(members.length, "member")} up`),
      h(
        "div",
        { class: "scroll" },
        h(
          "table",
          { class: "members of-etcd" },
          h("thead", {}, h("tr", {}, ["Member", "State", "Version", "Revision", "In use"].map((each) => h("th", { scope: "col" }, each)))),
          h(
            "tbody",
            {},
            members.map((each) =>
              h(
                "tr",
                {},
                h("th", { scope: "row", title: each.name }, each.name),
                h("td", { class: isHealthy(each) ? "" : "bad" }, memberState(each)),
                h("td", {}, each.version || ""),
                h("td", {}, each.revision === undefined ? "" : each.revision.toLocaleString()),
                h("td", {}, sizes(each)),
              ),
            ),
          ),
        ),
      ),
      members.flatMap((each) => [each.reason, ...(each.errors || [])].filter(Boolean).map((error) => h("p", { class: "bad" }, `${each.name}: ${error}`))),
      members.every(isHealthy) ? null : h("p", { class: "quiet" }, h("code", {}, "etcd-actions doctor"), " has the remedy."),
    );
  }

  function isHealthy(member) {
    return member.up && member.hasLeader !== false && !member.learner && !member.errors?.length;
  }

  function memberState(member) {
    if (!member.up) return "no answer";
    if (member.leads) return "leader";
    if (member.learner) return "learner";
    if (member.hasLeader === false) return "no leader";
    return member.hasLeader === undefined ? "up" : "follower";
  }

  function sizes({ size, inUse, quota }) {
    if (!size) return "";
    const used = bytes(inUse || size);
    return quota ? `${used} of ${bytes(quota)}` : used;
  }

  function shardsCard({ member, shardMembers, shards }) {
    if (member === "") return null;
    const mine = shards.filter((each) => each.owned).length;
    return h(
      "section",
      { class: "card wide", "aria-label": "Shards" },
      h("h2", {}, `Shards: ${shards.length.toLocaleString()}`),
      h("p", { class: "quiet" }, `Members: ${shardMembers.toLocaleString()}. This process is ${member}, and owns ${mine}.`),
      h(
        "div",
        { class: "scroll" },
        h(
          "table",
          { class: "members" },
          h("thead", {}, h("tr", {}, ["Shard", "From", "Owner", "Here", "Keys", "To report", "Problem"].map((each) => h("th", { scope: "col" }, each)))),
          h(
            "tbody",
            {},
            shards.map((each) =>
              h(
                "tr",
                {},
                h("th", { scope: "row" }, each.id),
                h("td", {}, each.start),
                h("td", { class: each.owner === "" ? "bad" : null }, each.owner || `none for ${duration(each.ownerless * 1000)}`),
                h("td", {}, each.owned ? "owner" : each.duty),
                h("td", {}, each.keys === null ? "" : each.keys.toLocaleString()),
                h("td", {}, each.owned ? each.pending.toLocaleString() : ""),
                h("td", { class: "long bad" }, each.problem),
              ),
            ),
          ),
        ),
      ),
    );
  }

  function watchCard({ watch, leader, checkpoint, runs, streams, subscriptions, member }) {
    const lag = watch.lagRevisions || 0;
    return card(
      "This process",
      pairs(
        member !== "" ? null : ["Leads", leader ? "yes: it reports and marks" : "no: another process does"],
        ["Lag", lag === 0 ? "none" : `${plural(lag, "revision")}, for ${duration(watch.lagSeconds * 1000)}`, watch.lagSeconds > 60],
        ["Stream", watch.streaming ? `open, ${duration(watch.silence * 1000)} silent` : "closed", !watch.streaming],
        ["Actions", (watch.keys ?? 0).toLocaleString()],
        runs === null ? null : ["Runs", runs.toLocaleString()],
        ["Revision", (watch.revision ?? 0).toLocaleString()],
        leader ? ["Checkpoint", checkpoint.toLocaleString()] : null,
        ["Clients", `${plural(streams, "stream")}, ${plural(subscriptions, "subscription")}`],
        ["Reconnects", `${watch.reconnects ?? 0}, ${plural(watch.relists ?? 0, "list")} after that`],
      ),
    );
  }

  function ratesCard() {
    const names = Object.keys(samples[samples.length - 1].counts);
    return card(
      "Rates",
      h("p", { class: "quiet" }, `a second, over the last ${duration(samples[samples.length - 1].at - samples[0].at || 2000)}`),
      h("dl", { class: "rates" }, names.map(rate)),
    );
  }

  function rate(name) {
    const values = [];
    for (let at = 1; at < samples.length; at += 1) {
      const seconds = (samples[at].at - samples[at - 1].at) / 1000;
      // A count that is lower is another process's.
      if (seconds > 0) values.push(Math.max(0, samples[at].counts[name] - samples[at - 1].counts[name]) / seconds);
    }
    const last = values.length > 0 ? values[values.length - 1] : 0;
    const bad = last > 0 && /failed|refused/.test(name);
    return h("div", {}, h("dt", {}, name), spark(values), h("dd", { class: bad ? "bad" : null }, last >= 100 ? Math.round(last).toLocaleString() : last.toFixed(1)));
  }

  function spark(values) {
    const most = Math.max(1, ...values);
    const points = values.map((value, at) => `${((at + KEPT - values.length) / (KEPT - 1)) * 100},${23 - (value / most) * 21}`);
    return svg("svg", { viewBox: "0 0 100 24", preserveAspectRatio: "none", class: "spark", "aria-hidden": "true" }, points.length > 1 ? svg("polyline", { points: points.join(" ") }) : null);
  }

  function queuesCard({ queues, contained }) {
    const queue = (found) => (found === null ? "the leader has them" : `${plural(found.keys, "key")}, ${found.failing} failing`);
    return card(
      "Queues",
      pairs(
        ["Reports", queue(queues.reports), queues.reports?.failing > 0],
        ["Handlers", queue(queues.handlers), queues.handlers.failing > 0],
        ["Ends held back", queues.deferred.toLocaleString()],
        ["To subscribers", plural(queues.undelivered, "update")],
        ["Failures contained", contained.toLocaleString(), contained > 0],
      ),
    );
  }

  function executorCard({ executor }) {
    if (executor === null) return null;
    return card(
      "Local executor",
      pairs(["Running", executor.running.toLocaleString()], ["Waiting for children", executor.waiting.toLocaleString()], ["Open actions", executor.open.toLocaleString()], ["Attempts started", executor.started.toLocaleString()], ["Attempts retried", executor.retries.toLocaleString()], ["Actions ended", executor.ended.toLocaleString()]),
    );
  }

  function lettersCard({ leader, deadLetters: { count, shown } }) {
    if (!leader) return card("Dead letters", h("p", { class: "quiet" }, "The process that leads knows them. ", h("code", {}, "etcd-actions dead-letters list"), " reads them from any machine."));
    if (count === 0) return card("Dead letters", h("p", { class: "quiet" }, "None: the run service has accepted all reports of this process."));
    return h(
      "section",
      { class: "card wide", "aria-label": "Dead letters" },
      h("h2", {}, `Dead letters: ${count.toLocaleString()}`),
      h("p", { class: "quiet" }, "Reports that the run service rejected for good. ", h("code", {}, "etcd-actions dead-letters retry"), " sends them again."),
      h(
        "div",
        { class: "scroll" },
        h(
          "table",
          { class: "members" },
          h("thead", {}, h("tr", {}, ["Action", "Report", "Last", "Times", "Error"].map((each) => h("th", { scope: "col" }, each)))),
          h("tbody", {}, shown.map((each) => h("tr", {}, h("th", { scope: "row" }, each.action), h("td", {}, each.what), h("td", {}, when(Date.parse(each.last) || null)), h("td", {}, String(each.times)), h("td", { class: "long" }, each.error)))),
        ),
      ),
    );
  }
}

function bytes(number) {
  for (const unit of ["B", "KiB", "MiB", "GiB"]) {
    if (number < 1024 || unit === "GiB") return `${number < 10 && unit !== "B" ? number.toFixed(1) : Math.round(number)} ${unit}`;
    number /= 1024;
  }
  return "";
}
