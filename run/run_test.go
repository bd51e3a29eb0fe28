package run

import (
	"testing"

	"bj/run/event"
)

func TestRecovers(t *testing.T) {
	trial(t, func(l *lab) {
		v := l.want(recipe(), "recovered")
		if v.Root != "fake root" || len(v.Free) != 1 {
			t.Errorf("verdict: %+v", v)
		}
		var names []string
		for _, e := range l.events {
			names = append(names, e.Event)
		}
		want := []string{
			event.Start, event.Lease, event.Sealed, event.CanaryTried, event.ValidationStarted, event.ValidationFinished,
			event.StepStarted, event.StepFinished, event.ValidationStarted, event.ValidationFinished, event.CanaryTried,
			event.Released, event.VerdictGiven, event.End,
		}
		if len(names) != len(want) {
			t.Fatalf("events: %v", names)
		}
		for i := range want {
			if names[i] != want[i] {
				t.Errorf("event %d is %s, want %s", i, names[i], want[i])
			}
		}
	})
}
