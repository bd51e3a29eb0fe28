package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/term"

	"bj/fleet"
	"bj/run/event"
	"bj/run/junit"
	"bj/run/report"
	terminalview "bj/run/term"
)

// outputs are the folds over a run's events that the flags ask for.
type outputs struct {
	sink   event.Sink
	logs   func(label string) string // nil: logs are written nowhere
	closes []func() error
}

// close ends all outputs, and returns what could not be written.
func (o *outputs) close() error {
	var errs []error
	for _, f := range o.closes {
		errs = append(errs, f())
	}
	return errors.Join(errs...)
}

// outputs makes the folds. Results is the folder of recorded runs, sandbox the
// provider's name, and tools are the programs that --tool puts in places of
// tools.
func (f *testFlags) outputs(ctx context.Context, e *env, l *loaded, results, sandbox string, tools map[string]string) (*outputs, error) {
	o := &outputs{}
	var sinks []event.Sink
	add := func(sink event.Sink, end func() error) {
		sinks = append(sinks, sink)
		o.closes = append(o.closes, end)
	}
	origin := event.Origin{
		Digest: func(label string) string {
			if r := l.fleet.Recipe(label); r != nil {
				return l.digest(r)
			}
			return ""
		},
		Given: func(label string) []string {
			if r := l.fleet.Recipe(label); r != nil {
				return given(r, tools)
			}
			return nil
		},
		Revision: gitRevision(ctx, l.workspace.Root),
		Sandbox:  sandbox,
	}

	if f.json {
		w := event.NewWriter(e.stdout.drawn())
		add(w.Event, w.Err)
	} else {
		progress := e.stderr
		if e.stdout.workflow {
			progress = disobedient{progress}
		}
		t := terminalview.New(terminalview.Options{
			Out: e.stdout.drawn(), Err: progress, Live: e.animated(e.stderr), Color: e.colored(e.stdout),
			Width: func() int { return width(os.Stderr) },
			Steps: func(label string) int {
				r := l.fleet.Recipe(label)
				if r == nil {
					return 0
				}
				return len(r.Strategy) + len(r.Validation)
			},
		})
		e.live.Store(t)
		add(t.Event, func() error { e.live.Store(nil); t.Close(); return nil })
	}
	if e.getenv("GITHUB_ACTIONS") == "true" {
		a := &annotations{out: e.stderr, summary: e.getenv("GITHUB_STEP_SUMMARY"), place: func(label string) (string, int) {
			if r := l.fleet.Recipe(label); r != nil {
				return e.inRepository(l.workspace.Root, r.Pos.File), r.Pos.Line
			}
			return "", 0
		}}
		add(a.Event, a.close)
	}
	recorder := &event.Recorder{Origin: origin, Dir: results}
	add(recorder.Event, recorder.Err)
	if f.runbooks != "" {
		pages := &runbooks{dir: e.path(f.runbooks), l: l, records: func(label string) []event.Record {
			records, err := event.Records(results, label)
			if err != nil {
				e.say("warning: " + err.Error())
			}
			return records
		}}
		recorder.Done = pages.done
		o.closes = append(o.closes, pages.close)
	}
	if f.report != "" {
		r, err := report.New(e.path(f.report), origin)
		if err != nil {
			return nil, err
		}
		o.logs = r.Path
		add(r.Event, r.Close)
	}
	if f.junit != "" {
		r := &junit.Report{File: func(label string) string {
			if r := l.fleet.Recipe(label); r != nil {
				return e.inRepository(l.workspace.Root, r.Pos.File)
			}
			return ""
		}}
		add(r.Event, func() error {
			var b bytes.Buffer
			if err := r.Write(&b); err != nil {
				return fmt.Errorf("writing the JUnit report: %w", err)
			}
			if err := event.WriteFile(e.path(f.junit), b.Bytes()); err != nil {
				return fmt.Errorf("writing the JUnit report: %w", err)
			}
			return nil
		})
	}
	o.sink = event.Tee(sinks...)
	return o, nil
}

// given returns the tools of a recipe in whose place --tool puts another program.
func given(r *fleet.Recipe, tools map[string]string) []string {
	var names []string
	for _, t := range r.Tools {
		if tools[t.Name] != "" {
			names = append(names, t.Name)
		}
	}
	return names
}

// width is the number of columns of the terminal, 0 if that is not known.
func width(f *os.File) int {
	n, _, err := term.GetSize(int(f.Fd()))
	if err != nil {
		return 0
	}
	return n
}
