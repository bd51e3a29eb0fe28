package main

import (
	"bytes"
	"encoding/xml"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bj/run/event"
)

// told is one recipe of a report that a test makes up; without a verdict its run
// was cut off.
type told struct{ label, verdict, code string }

// makeReport writes what bj test --report would have, of a shard if it says so.
func makeReport(t *testing.T, dir, shard string, recipes ...told) {
	t.Helper()
	var stream bytes.Buffer
	w := event.NewWriter(&stream)
	start := event.Event{Event: event.Start, Schema: event.Schema, Version: version, Shard: shard}
	for _, r := range recipes {
		start.Recipes = append(start.Recipes, r.label)
	}
	w.Event(start)
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	whole := true
	for _, r := range recipes {
		w.Event(event.Event{Event: event.Lease, Time: at, Recipe: r.label})
		if r.verdict == "" {
			whole = false
			break
		}
		v := event.Verdict{Verdict: r.verdict, Reason: "in " + filepath.Base(dir)}
		if r.code != "" {
			v.Code = &r.code
		}
		w.Event(event.Event{Event: event.VerdictGiven, Time: at.Add(time.Second), Recipe: r.label, Verdict: &v})
		x := event.Record{Schema: event.RecordSchema, Recipe: r.label, Version: version, Start: at, End: at.Add(time.Second), Verdict: v}
		if err := x.Write(filepath.Join(dir, "records")); err != nil {
			t.Fatal(err)
		}
		found, err := filepath.Glob(filepath.Join(dir, "records", event.SafeName(r.label), "*.json"))
		if err != nil || len(found) != 1 {
			t.Fatal(found, err)
		}
		if err := os.MkdirAll(filepath.Join(dir, event.SafeName(r.label)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(found[0], filepath.Join(dir, event.SafeName(r.label), "result.json")); err != nil {
			t.Fatal(err)
		}
	}
	if whole {
		exit := 0
		w.Event(event.Event{Event: event.End, Time: at, Exit: &exit, Totals: &event.Totals{}})
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "events.jsonl"), stream.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestMerge joins reports as they come from machines that were lost, began again
// or never began.
func TestMerge(t *testing.T) {
	const good, bad, fault = event.Recovered, event.NotRecovered, event.Errored
	for _, c := range []struct {
		name   string
		make   func(t *testing.T, dir string)
		exit   int
		last   string // line of stdout
		says   []string
		counts [3]int // test cases, failures, errors; all 0: there is no report
	}{
		{"two shards", func(t *testing.T, dir string) {
			makeReport(t, dir+"/1", "1/2", told{"//p:a", good, ""})
			makeReport(t, dir+"/2", "2/2", told{"//p:b", good, ""})
		}, 0, "2 recovered, 0 not recovered, 0 errors", nil, [3]int{2, 0, 0}},
		{"a shard without a recipe", func(t *testing.T, dir string) {
			makeReport(t, dir+"/1", "1/2", told{"//p:a", good, ""})
			makeReport(t, dir+"/2", "2/2")
		}, 0, "1 recovered, 0 not recovered, 0 errors", nil, [3]int{1, 0, 0}},
		{"an empty folder of a shard", func(t *testing.T, dir string) {
			makeReport(t, dir+"/1", "1/2", told{"//p:a", good, ""})
			os.MkdirAll(dir+"/2", 0o755)
		}, 3, "1 recovered, 0 not recovered, 1 error", []string{"2 holds no report", "shard 2 of 2 is missing"}, [3]int{2, 0, 1}},
		{"an empty folder", func(t *testing.T, dir string) {
			makeReport(t, dir+"/1", "", told{"//p:a", good, ""})
			os.MkdirAll(dir+"/2", 0o755)
		}, 3, "1 recovered, 0 not recovered, 1 error", []string{"2 holds no report"}, [3]int{2, 0, 1}},
		{"nothing but empty folders", func(t *testing.T, dir string) {
			os.MkdirAll(dir+"/1", 0o755)
		}, 2, "", []string{"1 holds no report: there is no events.jsonl", "bj: hint: "}, [3]int{}},
		{"streams without a beginning", func(t *testing.T, dir string) {
			makeReport(t, dir+"/1", "1/2", told{"//p:a", bad, ""})
			os.MkdirAll(dir+"/2", 0o755)
			os.WriteFile(dir+"/2/events.jsonl", nil, 0o644)
			os.MkdirAll(dir+"/3", 0o755)
			os.WriteFile(dir+"/3/events.jsonl", []byte(`{"event": "sta`), 0o644)
		}, 1, "0 recovered, 1 not recovered, 2 errors", []string{"2 was cut off", "3 was cut off", "shard 2 of 2 is missing"}, [3]int{3, 1, 2}},
		{"cut off", func(t *testing.T, dir string) {
			makeReport(t, dir+"/1", "1/1", told{"//p:a", good, ""}, told{"//p:b", "", ""}, told{"//p:c", good, ""})
		}, 3, "1 recovered, 0 not recovered, 2 errors", []string{"1 was cut off"}, [3]int{3, 0, 2}},
		{"cut off, and run again", func(t *testing.T, dir string) {
			makeReport(t, dir+"/1", "1/1", told{"//p:a", "", ""})
			makeReport(t, dir+"/2", "1/1", told{"//p:a", good, ""})
		}, 3, "0 recovered, 0 not recovered, 1 error", []string{"//p:a is in ", "the worse verdict counts"}, [3]int{1, 0, 1}},
		{"the same twice", func(t *testing.T, dir string) {
			makeReport(t, dir+"/1", "", told{"//p:a", good, ""}, told{"//p:b", fault, "leak"}, told{"//p:c", bad, ""})
			makeReport(t, dir+"/2", "", told{"//p:a", fault, "lease"}, told{"//p:b", bad, ""}, told{"//p:c", good, ""})
		}, 1, "0 recovered, 2 not recovered, 1 error", []string{"//p:a is in ", "//p:b is in ", "//p:c is in "}, [3]int{3, 2, 1}},
		{"interrupted beside a failure", func(t *testing.T, dir string) {
			makeReport(t, dir+"/1", "1/2", told{"//p:a", bad, ""})
			makeReport(t, dir+"/2", "2/2", told{"//p:b", fault, "interrupted"})
		}, 130, "0 recovered, 1 not recovered, 1 error", nil, [3]int{2, 1, 1}},
		{"of two runs", func(t *testing.T, dir string) {
			makeReport(t, dir+"/1", "1/2", told{"//p:a", good, ""})
			makeReport(t, dir+"/2", "2/3", told{"//p:b", good, ""})
		}, 2, "", []string{"of 3 shards", "bj: hint: merge reports of one run"}, [3]int{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir, kept := t.TempDir(), t.TempDir()
			c.make(t, dir)
			folders, err := filepath.Glob(dir + "/*")
			if err != nil {
				t.Fatal(err)
			}
			folders = append(folders, dir+"/1/../1") // which is there already
			var want string
			for range 2 { // the second time, nothing is recorded again
				var stdout, stderr bytes.Buffer
				e := newEnv()
				e.dir, e.stdout, e.stderr = dir, &pipe{w: &stdout}, &stderr
				err = execute(t.Context(), e, append([]string{"report", "merge", "--junit", kept + "/junit.xml", "--results", kept + "/results"}, folders...))
				if code := e.report(err); code != c.exit {
					t.Errorf("exit code %d, want %d", code, c.exit)
				}
				if lines := strings.Split(strings.TrimSuffix(stdout.String(), "\n"), "\n"); lines[len(lines)-1] != c.last {
					t.Errorf("it ends with %q, want %q", lines[len(lines)-1], c.last)
				}
				for _, s := range c.says {
					if !strings.Contains(stderr.String(), s) {
						t.Errorf("stderr does not say %q:\n%s", s, &stderr)
					}
				}
				records, err := filepath.Glob(kept + "/results/*/*.json")
				if err != nil {
					t.Fatal(err)
				}
				if now := strings.Join(records, "\n"); want == "" {
					want = now
				} else if now != want {
					t.Errorf("merging again records more:\n%s", now)
				}
			}
			var suites struct {
				Tests    int `xml:"tests,attr"`
				Failures int `xml:"failures,attr"`
				Errors   int `xml:"errors,attr"`
			}
			data, err := os.ReadFile(kept + "/junit.xml")
			if c.counts == [3]int{} {
				if err == nil {
					t.Errorf("there is a report: %s", data)
				}
				return
			}
			if err == nil {
				err = xml.Unmarshal(data, &suites)
			}
			if got := [3]int{suites.Tests, suites.Failures, suites.Errors}; err != nil || got != c.counts {
				t.Errorf("JUnit counts %v, want %v (%v)", got, c.counts, err)
			}
		})
	}
}
