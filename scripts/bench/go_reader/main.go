// The Go reader: etcd's clientv3, and encoding/json into a struct for each event.
//
// It is what an informer in Go does at least. Its commands and answers are those of recorder.py.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/clientv3"
	"golang.org/x/sys/unix"
)

const (
	poll  = 5 * time.Millisecond
	quiet = 500 * time.Millisecond
)

// task is the part of recorder.Task that this reader uses.
type task struct {
	Mode     string `json:"mode"`
	Host     string `json:"host"`
	Port     int    `json:"port"`
	Prefix   string `json:"prefix"`
	Revision int64  `json:"revision"`
	Page     int64  `json:"page"`
	Times    string `json:"times"`
}

// condition, metadata and action have the fields of a stored TaskAction.
type condition struct {
	Type               string `json:"type"`
	Status             string `json:"status"`
	Reason             string `json:"reason"`
	Message            string `json:"message"`
	LastTransitionTime string `json:"lastTransitionTime"`
}

type metadata struct {
	Name              string            `json:"name"`
	Namespace         string            `json:"namespace"`
	UID               string            `json:"uid"`
	Generation        int64             `json:"generation"`
	CreationTimestamp string            `json:"creationTimestamp"`
	DeletionTimestamp string            `json:"deletionTimestamp"`
	Labels            map[string]string `json:"labels"`
	Annotations       map[string]string `json:"annotations"`
	Finalizers        []string          `json:"finalizers"`
	OwnerReferences   []struct {
		APIVersion         string `json:"apiVersion"`
		Kind               string `json:"kind"`
		Name               string `json:"name"`
		UID                string `json:"uid"`
		Controller         *bool  `json:"controller"`
		BlockOwnerDeletion *bool  `json:"blockOwnerDeletion"`
	} `json:"ownerReferences"`
	ManagedFields []struct {
		Manager    string          `json:"manager"`
		Operation  string          `json:"operation"`
		APIVersion string          `json:"apiVersion"`
		Time       string          `json:"time"`
		FieldsType string          `json:"fieldsType"`
		FieldsV1   json.RawMessage `json:"fieldsV1"`
	} `json:"managedFields"`
}

type action struct {
	APIVersion string   `json:"apiVersion"`
	Kind       string   `json:"kind"`
	Metadata   metadata `json:"metadata"`
	Spec       struct {
		Org              string            `json:"org"`
		Project          string            `json:"project"`
		Domain           string            `json:"domain"`
		RunName          string            `json:"runName"`
		ActionName       string            `json:"actionName"`
		ParentActionName string            `json:"parentActionName"`
		TaskType         string            `json:"taskType"`
		ShortName        string            `json:"shortName"`
		Group            string            `json:"group"`
		InputURI         string            `json:"inputUri"`
		RunOutputBase    string            `json:"runOutputBase"`
		Interruptible    *bool             `json:"interruptible"`
		EnvVars          map[string]string `json:"envVars"`
		TaskTemplate     []byte            `json:"taskTemplate"`
	} `json:"spec"`
	Status struct {
		Attempts     int32       `json:"attempts"`
		CacheStatus  int32       `json:"cacheStatus"`
		Conditions   []condition `json:"conditions"`
		PhaseHistory []struct {
			Phase      string `json:"phase"`
			OccurredAt string `json:"occurredAt"`
			Message    string `json:"message"`
		} `json:"phaseHistory"`
		PluginState      []byte `json:"pluginState"`
		PluginPhase      string `json:"pluginPhase"`
		PluginPhaseOrder int32  `json:"pluginPhaseVersion"`
		StateJSON        string `json:"stateJson"`
	} `json:"status"`
}

// recorder counts the events; its mutex is for the commands.
type recorder struct {
	sync.Mutex
	seen, sent           []int64
	last                 map[string]int64
	disordered           int
	openedAt, openedCPU  int64
	watching             chan struct{}
	watchingOnce         sync.Once
	listedCount, counted int64
	listedAt             int64
}

func now() int64 {
	var at unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &at); err != nil {
		panic(err)
	}
	return at.Nano()
}

func cpu() int64 {
	var at unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &at); err != nil {
		panic(err)
	}
	return at.Nano()
}

func decode(value []byte) (*action, error) {
	object := new(action)
	return object, json.Unmarshal(value, object)
}

func (r *recorder) event(key []byte, revision int64, value []byte) error {
	object, err := decode(value)
	if err != nil {
		return err
	}
	sent, err := strconv.ParseInt(strings.TrimLeft(object.Spec.ShortName, "0"), 10, 64)
	if err != nil {
		return err
	}
	r.Lock()
	defer r.Unlock()
	r.seen = append(r.seen, now())
	r.sent = append(r.sent, sent)
	name := string(key)
	if revision <= r.last[name] {
		r.disordered++
	}
	r.last[name] = revision
	atomic.AddInt64(&r.counted, 1)
	return nil
}

func read(client *clientv3.Client, work task, r *recorder) error {
	ctx := context.Background()
	if work.Mode == "list" {
		return list(ctx, client, work, r)
	}
	responses := client.Watch(ctx, work.Prefix, clientv3.WithPrefix(),
		clientv3.WithRev(work.Revision), clientv3.WithFragment(), clientv3.WithCreatedNotify())
	for response := range responses {
		if err := response.Err(); err != nil {
			return err
		}
		if response.Created {
			r.watchingOnce.Do(func() { close(r.watching) })
		}
		for _, event := range response.Events {
			if err := r.event(event.Kv.Key, event.Kv.ModRevision, event.Kv.Value); err != nil {
				return err
			}
		}
	}
	return fmt.Errorf("the watch ended")
}

func list(ctx context.Context, client *clientv3.Client, work task, r *recorder) error {
	key, end, revision := work.Prefix, clientv3.GetPrefixRangeEnd(work.Prefix), int64(0)
	for {
		page, err := client.Get(ctx, key, clientv3.WithRange(end), clientv3.WithLimit(work.Page),
			clientv3.WithRev(revision))
		if err != nil {
			return err
		}
		for _, kv := range page.Kvs {
			if _, err := decode(kv.Value); err != nil {
				return err
			}
			atomic.StoreInt64(&r.listedAt, now())
			atomic.AddInt64(&r.listedCount, 1)
		}
		if !page.More {
			return nil
		}
		revision = page.Header.Revision
		key = string(page.Kvs[len(page.Kvs)-1].Key) + "\x00"
	}
}

// await waits for count events, or for the last revision and then quiet; see recorder.py.
func (r *recorder) await(count, revision int64, timeout float64) {
	deadline := time.Now().Add(time.Duration(timeout * float64(time.Second)))
	before, since := int64(-1), time.Now()
	for time.Now().Before(deadline) {
		if revision == 0 {
			if atomic.LoadInt64(&r.listedCount) >= count {
				return
			}
		} else if counted := atomic.LoadInt64(&r.counted); counted >= count {
			return
		} else if counted != before {
			before, since = counted, time.Now()
		} else if time.Since(since) > quiet && r.latest() >= revision {
			return
		}
		time.Sleep(poll)
	}
}

func (r *recorder) latest() int64 {
	r.Lock()
	defer r.Unlock()
	most := int64(0)
	for _, revision := range r.last {
		if revision > most {
			most = revision
		}
	}
	return most
}

func peak() int64 {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		panic(err)
	}
	for _, line := range strings.Split(string(status), "\n") {
		if fields := strings.Fields(line); len(fields) > 1 && fields[0] == "VmHWM:" {
			kilobytes, err := strconv.ParseInt(fields[1], 10, 64)
			if err != nil {
				panic(err)
			}
			return kilobytes * 1024
		}
	}
	return 0
}

func (r *recorder) result(work task, spent int64) (map[string]interface{}, error) {
	resident := peak()
	r.Lock()
	defer r.Unlock()
	var times bytes.Buffer
	for _, column := range [][]int64{r.seen, r.sent} {
		if err := binary.Write(&times, binary.LittleEndian, column); err != nil {
			return nil, err
		}
	}
	if err := os.WriteFile(work.Times, times.Bytes(), 0o600); err != nil {
		return nil, err
	}
	seenAt := int64(0)
	if len(r.seen) > 0 {
		seenAt = r.seen[len(r.seen)-1]
	}
	return map[string]interface{}{
		"event": "result", "cpu_ns": spent, "rss": resident, "seen": len(r.seen),
		"disordered": r.disordered, "last": r.last, "listed": atomic.LoadInt64(&r.listedCount),
		"listed_at": atomic.LoadInt64(&r.listedAt), "opened_at": r.openedAt, "seen_at": seenAt,
		"conflated": 0,
	}, nil
}

func commands(channel *os.File, work task, r *recorder) error {
	answers := json.NewEncoder(channel)
	baseline := r.openedCPU
	lines := bufio.NewScanner(channel)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		var answer interface{}
		switch words[0] {
		case "watch":
			<-r.watching
			answer = map[string]string{"event": "watching"}
		case "baseline":
			count, err := strconv.ParseInt(words[1], 10, 64)
			if err != nil {
				return err
			}
			for atomic.LoadInt64(&r.counted) < count {
				time.Sleep(poll)
			}
			baseline = cpu()
			answer = map[string]string{"event": "ready"}
		case "finish":
			count, err := strconv.ParseInt(words[1], 10, 64)
			if err != nil {
				return err
			}
			revision, err := strconv.ParseInt(words[2], 10, 64)
			if err != nil {
				return err
			}
			timeout, err := strconv.ParseFloat(words[3], 64)
			if err != nil {
				return err
			}
			r.await(count, revision, timeout)
			if answer, err = r.result(work, cpu()-baseline); err != nil {
				return err
			}
		default:
			return fmt.Errorf("unknown command %q", words[0])
		}
		if err := answers.Encode(answer); err != nil {
			return err
		}
	}
	return lines.Err()
}

func main() {
	descriptor, err := strconv.Atoi(os.Args[1])
	if err != nil {
		panic(err)
	}
	channel := os.NewFile(uintptr(descriptor), "driver")
	fail := func(err error) {
		fmt.Fprintln(os.Stderr, err)
		json.NewEncoder(channel).Encode(map[string]string{"event": "failed", "error": err.Error()})
		os.Exit(1)
	}
	var work task
	if err := json.Unmarshal([]byte(os.Args[2]), &work); err != nil {
		fail(err)
	}
	r := &recorder{last: map[string]int64{}, watching: make(chan struct{})}
	r.openedAt, r.openedCPU = now(), cpu()
	client, err := clientv3.New(clientv3.Config{
		Endpoints:          []string{fmt.Sprintf("%s:%d", work.Host, work.Port)},
		DialTimeout:        10 * time.Second,
		MaxCallRecvMsgSize: 1<<31 - 1,
	})
	if err != nil {
		fail(err)
	}
	go func() {
		if err := read(client, work, r); err != nil {
			fail(err)
		}
	}()
	// The driver decides when this process ends.
	if err := commands(channel, work, r); err != nil {
		fail(err)
	}
}
