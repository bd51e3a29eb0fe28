package main

import (
	"errors"

	"bj/run/event"
)

// outputs are the folds over a run's events that the flags ask for.
type outputs struct {
	sink   event.Sink
	logs   func(label string) string
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

// outputs makes the folds.
func (f *testFlags) outputs(e *env, l *loaded, results string) (*outputs, error) {
	o := &outputs{}
	var sinks []event.Sink
	add := func(sink event.Sink, end func() error) {
		sinks = append(sinks, sink)
		o.closes = append(o.closes, end)
	}
	if f.json {
		w := event.NewWriter(e.stdout)
		add(w.Event, w.Err)
	}
	recorder := &event.Recorder{Dir: results, Digest: func(label string) string {
		if r := l.fleet.Recipe(label); r != nil {
			return event.Digest(l.fleet, r)
		}
		return ""
	}}
	add(recorder.Event, recorder.Err)
	o.sink = event.Tee(sinks...)
	return o, nil
}
