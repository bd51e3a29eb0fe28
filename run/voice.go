package run

import (
	"fmt"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"bj/run/event"
)

// stream gives events to a sink one at a time, with times that never go back.
type stream struct {
	mu   sync.Mutex
	sink event.Sink
}

func (s *stream) emit(e event.Event) { s.emitUnless(e, nil) }

// emitUnless emits e, unless late is set by then.
func (s *stream) emitUnless(e event.Event, late *atomic.Bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if late != nil && late.Load() {
		return
	}
	if e.Event != event.Start {
		e.Time = time.Now().UTC().Truncate(time.Millisecond)
	}
	if s.sink != nil {
		s.sink(e)
	}
}

// voice emits the events of one environment: it names the recipe, and masks
// what nobody may see.
type voice struct {
	stream   *stream
	recipe   string
	supplier string
	mask     *mask
	quiet    bool // notes only
	// judged is set when the verdict is given: what programs still print is of
	// no interest then. Suppliers share it; nil means never.
	judged *atomic.Bool
}

func (v *voice) emit(e event.Event) {
	if v.quiet && e.Event != event.Note {
		return
	}
	e.Recipe, e.Supplier = v.recipe, v.supplier
	if e.Event != event.OutputWritten { // masked as it came
		e.Text = v.mask.text(e.Text)
	}
	if x := e.Verdict; x != nil {
		x.Reason, x.Hint = v.mask.text(x.Reason), v.mask.text(x.Hint)
	}
	if x := e.Blocked; x != nil && x.Process != nil {
		for i := range x.Process.Argv {
			x.Process.Argv[i] = v.mask.text(x.Process.Argv[i])
		}
		for i := range x.Process.Parents {
			x.Process.Parents[i] = v.mask.text(x.Process.Parents[i])
		}
	}
	if e.Event == event.OutputWritten {
		v.stream.emitUnless(e, v.judged)
		return
	}
	v.stream.emit(e)
}

// panicked makes a failure of what a panic was about, and says where it was.
func (v *voice) panicked(p any) *failure {
	v.emit(event.Event{Event: event.Note, Text: fmt.Sprintf("internal error: %v\n%s", p, debug.Stack())})
	return &failure{message: fmt.Sprintf("internal error: %v", p), hint: "this is a mistake in bj: please report it, with the events of --json"}
}

// seconds is the time since start, as events carry it.
func seconds(start time.Time) *float64 {
	s := time.Since(start).Round(time.Microsecond).Seconds()
	return &s
}

func pointer[T any](v T) *T { return &v }
