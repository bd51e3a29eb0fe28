package runbook

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"bj/fleet"
	"bj/graph"
	"bj/run/event"
)

// hostile is text that tries to be something else than text.
const hostile = "</pre><script>alert(1)</script> <img src=x onerror=alert(2)> [x](javascript:alert(3)) **b** ``` `` ` | &lt; \x1b[31mred\x1b[0m \x1b]0;title\x07 \u202eevil \u200b\x00 \x7f <!-- -->\n# heading\n```\n<b>out</b>\n~~~\n---\n"

const secret = `hu<sh "&" s*ecret`

// sample is a fleet of two services, one of which is told in hostile text.
func sample() *fleet.Fleet {
	machine := func(name string, index int, v4, v6 string) fleet.Machine {
		return fleet.Machine{Name: name, Index: index, Address: netip.MustParseAddr(v4), V4: netip.MustParseAddr(v4), V6: netip.MustParseAddr(v6), Declared: true}
	}
	db := []fleet.Machine{machine("db-0", 0, "10.0.0.1", "fd00::1"), machine("db-1", 1, "10.0.0.11", "fd00::2")}
	store := []fleet.Machine{machine("store", 0, "10.0.0.9", "fd00::9")}
	on := []string{"db-0", "db-1"}
	run := func(text string) []fleet.Script {
		return []fleet.Script{{Machine: "db-0", Text: text}, {Machine: "db-1", Text: text}}
	}
	read, err := fleet.ParseEndpoint("tcp://10.0.0.9:5000")
	if err != nil {
		panic(err)
	}
	pathways := []fleet.Pathway{{Name: "default", Endpoints: []fleet.Endpoint{read}}}
	return &fleet.Fleet{
		Services: []*fleet.Service{
			{Name: "db", Owner: "db <b>oncall</b>", Doc: hostile, Kind: fleet.KindService, Package: "db", Pathways: []fleet.Pathway{{Name: "default"}}, Listens: []fleet.Ports{{Protocol: "tcp", First: 5432, Last: 5432}}},
			{Name: "store", Owner: "store-oncall", Kind: fleet.KindService, Package: "store", Pathways: pathways},
		},
		Recipes: []*fleet.Recipe{
			{Label: "//db:cold", Package: "db", Name: "cold", Service: "db", Doc: "When `all` is lost.\n\n- one\n- two", FileDoc: hostile, Restores: []string{"default"}, Within: 10 * time.Minute,
				Hardware:   []*fleet.Hardware{{Name: "db", CPUs: 1, Memory: 1 << 28, Disk: 1 << 30, Machines: db}},
				Tools:      []fleet.Tool{{Name: "db", Path: "/opt/db|x", Kept: &fleet.Kept{Text: hostile}}},
				Files:      []fleet.File{{Path: "/etc/db/10.0.0.1.conf", Content: "listen 10.0.0.1, not 10.0.0.11 or 110.0.0.1 or 10.0.0.12\nEND\n" + secret, Mode: 0o600}, {Path: "/etc/db/bin", Content: "\x00\xff" + secret, Mode: 0o644}},
				Secrets:    []fleet.Secret{{Name: "PASSWORD", Value: secret, Where: "in the safe"}},
				Conditions: []fleet.Condition{{Service: "store", Pathways: []string{"default"}, Why: hostile, Effort: 1}},
				Strategy: []fleet.Action{
					{Step: &fleet.Step{Title: "Configure <i>it</i>", On: on, Run: run("echo '```'\necho " + secret + "\nexit 0"), Unit: "configure", User: "root", Within: time.Minute, Danger: hostile}},
					{Step: &fleet.Step{Title: "Ask", On: on[:1], Run: run("cat /etc/token")[:1], Unit: "ask", User: "root", Within: time.Minute, Capture: "TOKEN", Masked: true}},
					{Step: &fleet.Step{Title: "Serve", On: on, Run: run("exec db --peer 10.0.0.11"), Unit: "db", User: "postgres", Daemon: true, Restart: true, Expect: "ready `now`", Within: time.Minute, IfFails: hostile}},
					{Step: &fleet.Step{Title: "Look at the lamp", On: on[:1], Unit: "lamp", User: "root", Within: time.Minute}},
					{Fault: &fleet.Fault{Title: "one is lost", On: on[1:], Crash: true}},
				},
				Validation: []*fleet.Validation{{Title: "it serves", On: on, Run: run("db ask 10.0.0.1"), Expect: `10\.0\.0\.1 ok`, Within: time.Minute, Every: time.Second, AtLeast: 1}},
			},
			{Label: "//store:cold", Package: "store", Name: "cold", Service: "store", Restores: []string{"default"}, Within: time.Minute,
				Hardware:   []*fleet.Hardware{{Name: "store", CPUs: 1, Memory: 1 << 28, Disk: 1 << 30, Machines: store}},
				Strategy:   []fleet.Action{{Step: &fleet.Step{Title: "Serve", On: []string{"store"}, Run: []fleet.Script{{Machine: "store", Text: "exec store 10.0.0.9"}}, Unit: "store", User: "root", Daemon: true, Within: time.Minute}}},
				Validation: []*fleet.Validation{{Title: "it serves", On: []string{"store"}, Run: []fleet.Script{{Machine: "store", Text: "true"}}, Within: time.Minute, Every: time.Second, AtLeast: 1}},
			},
		},
	}
}

// proven is a record of a run of //db:cold that recovered.
func proven(f *fleet.Fleet, seconds float64) event.Record {
	start := time.Date(2026, 5, 6, 7, 8, 9, 0, time.UTC)
	service := "store"
	return event.Record{Schema: event.RecordSchema, Recipe: "//db:cold", Digest: event.Digest(f, f.Recipes[0], nil), Version: "0.1.0", Start: start, End: start.Add(time.Minute), Revision: "abc",
		Verdict: event.Verdict{Verdict: event.Recovered, Root: hostile, Free: []string{"clock: the host's"}},
		Steps: []event.StepRecord{
			{Title: "Configure <i>it</i>", Machine: "db-0", Seconds: seconds, Output: hostile + strings.Repeat("x", 5000) + "\nat 10.0.0.1\n"},
			{Title: "Serve", Machine: "db-0", Seconds: 1, Output: "ready"},
		},
		Blocked: []event.Blocked{{Protocol: "tcp", Destination: event.Destination{Address: "192.0.2.7", Port: 443}, Service: &service, Count: 3, Process: &event.Process{Exe: hostile}}},
	}
}

// book makes the book of a fleet with records of //db:cold.
func book(t testing.TB, f *fleet.Fleet, hosts string, records ...event.Record) *Book {
	t.Helper()
	of := func(label string) []event.Record {
		if label == "//db:cold" {
			return records
		}
		return nil
	}
	g, err := graph.New(f, graph.Options{Results: of})
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Fleet: f, Graph: g, Records: of, Version: "0.1.0", Digest: func(f *fleet.Fleet, r *fleet.Recipe) string { return event.Digest(f, r, nil) }, Read: func(name string) ([]byte, error) { return nil, fmt.Errorf("opening %s: %w", name, os.ErrNotExist) }}
	if hosts != "" {
		if o.Machines, err = ReadMachines([]byte(hosts)); err != nil {
			t.Fatal(err)
		}
	}
	return New(o)
}

// everywhere is a site in which each recipe has its page.
func everywhere(*fleet.Recipe) bool { return true }
