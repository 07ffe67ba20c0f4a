# Workers of the pool "default" on Nomad: docs/deploy/nomad.md.
#   nomad job run -var etcd=10.0.0.5:2379 docs/deploy/worker.nomad.hcl
variable "etcd" {
  type        = string
  description = "The endpoints of etcd, as HOST:PORT, between commas."
}

variable "slots" {
  type        = number
  default     = 4
  description = "Actions that a worker runs at once."
}

job "etcd-actions-worker" {
  datacenters = ["dc1"]
  type        = "service"

  group "default" {
    count = 2

    # For nomad-autoscaler, with its Prometheus plugin.
    scaling {
      enabled = true
      min     = 1
      max     = 20

      policy {
        cooldown            = "2m"
        evaluation_interval = "15s"

        check "queue" {
          source = "prometheus"
          # The number of workers: the actions that need a slot, by the slots of a worker.
          query = "ceil((sum(etcd_actions_queued_actions{pool=\"default\"}) + (sum(etcd_actions_executor_running{pool=\"default\"} - etcd_actions_executor_waiting{pool=\"default\"}) or vector(0))) / 4)"

          strategy "pass-through" {}
        }
      }
    }

    # A worker that ends is started again, without end: its settings are wrong, or etcd's.
    restart {
      attempts = 3
      interval = "5m"
      delay    = "10s"
      mode     = "delay"
    }

    # A node that is lost: elsewhere at once. Its attempts are taken over when their claims expire.
    reschedule {
      delay          = "10s"
      delay_function = "exponential"
      max_delay      = "5m"
      unlimited      = true
    }

    update {
      max_parallel     = 1
      health_check     = "checks"
      min_healthy_time = "10s"
      healthy_deadline = "5m"
      # An update waits for the drain of each old worker.
      progress_deadline = "30m"
    }

    # A drained node moves one worker at a time.
    migrate {
      max_parallel     = 1
      health_check     = "checks"
      min_healthy_time = "10s"
    }

    # Attempts end with the task, and their logs are copied to the outputs: nothing here is kept.
    ephemeral_disk {
      size = 10000
    }

    network {
      port "monitoring" {
        to = 8092
      }
    }

    service {
      name     = "etcd-actions-worker"
      provider = "nomad"
      port     = "monitoring"
      tags     = ["pool=default"]

      check {
        type     = "http"
        path     = "/readyz"
        interval = "10s"
        timeout  = "5s"
      }
    }

    task "worker" {
      driver = "docker"

      # SIGTERM drains. More than the grace and ten seconds; the client's max_kill_timeout, 30s by
      # default, has to allow it.
      kill_signal  = "SIGTERM"
      kill_timeout = "660s"

      config {
        image   = "etcd-actions-worker:latest"
        args    = ["worker"]
        ports   = ["monitoring"]
        volumes = ["/mnt/etcd-actions:/mnt/etcd-actions"]
      }

      env {
        ETCDCTL_ENDPOINTS               = var.etcd
        ETCD_ACTIONS_POOL               = "default"
        ETCD_ACTIONS_BLOB_DIR           = "/mnt/etcd-actions/blobs"
        ETCD_ACTIONS_EXECUTOR_STATE_DIR = "${NOMAD_ALLOC_DIR}/data/state"
        ETCD_ACTIONS_EXECUTOR_SLOTS     = var.slots
        ETCD_ACTIONS_EXECUTOR_MEMORY    = "7GiB"
        ETCD_ACTIONS_CPUS               = "4"
        ETCD_ACTIONS_MONITORING_LISTEN  = "0.0.0.0:8092"
        ETCD_ACTIONS_GRACE              = "10m"
      }

      resources {
        cores  = 4
        memory = 8192
      }
    }
  }
}
