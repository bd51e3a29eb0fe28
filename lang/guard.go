package lang

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"sync/atomic"
	"time"

	"go.starlark.net/starlark"
)

// Limits bound the evaluation of one module. Zero fields mean the default.
type Limits struct {
	Steps  uint64        // of the interpreter; 50 million
	Time   time.Duration // on the wall; 20 s
	Memory uint64        // bytes that may be live because of it; 256 MiB
}

func (l Limits) orDefault() Limits {
	if l.Steps == 0 {
		l.Steps = 50_000_000
	}
	if l.Time == 0 {
		l.Time = 20 * time.Second
	}
	if l.Memory == 0 {
		l.Memory = 256 << 20
	}
	return l
}

// A guard holds evaluations to their limits. Steps are the interpreter's to
// count. Memory is bounded in two ways. What one operation may make out of
// small operands (a repeated string, a joined list) is refused before it
// happens, by amplify.go; so whatever still grows takes many operations, and
// a watcher that measures the heap every few milliseconds can cancel it in
// between. The heap is the whole process's, and part of it garbage: an
// evaluation that is cancelled is tried again alone, with a collector that is
// told to keep the heap small, so that nobody pays for another or for what is
// no longer used.
//
// A builtin cannot be interrupted (comparing two values that share much can
// take for ever). An evaluation that ignores its cancellation is abandoned: it
// fails, and its goroutine is left behind until it ends or the process does.
type guard struct {
	limits Limits

	alone sync.RWMutex // held for writing by an evaluation that is measured alone

	heap atomic.Uint64 // bytes at the last tick
	stop chan struct{}
	done chan struct{}

	mu      sync.Mutex
	running map[*evaluation]struct{}
	idle    []*executor
}

// An executor is a goroutine that runs one job after the other, which spares
// each the growth of a fresh stack. One that is abandoned is not used again.
type executor struct {
	jobs   chan func() error
	result chan error
}

// executor returns one that is idle.
func (g *guard) executor() *executor {
	g.mu.Lock()
	defer g.mu.Unlock()
	if n := len(g.idle); n > 0 {
		x := g.idle[n-1]
		g.idle = g.idle[:n-1]
		return x
	}
	x := &executor{jobs: make(chan func() error, 1), result: make(chan error, 1)}
	go func() {
		for job := range x.jobs {
			x.result <- protected(job)
		}
	}()
	return x
}

// protected turns a panic into an error.
func protected(f func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("internal error: %v", r)
		}
	}()
	return f()
}

const (
	tick  = 4 * time.Millisecond
	grace = 4 * time.Second // between a cancellation and giving up
	stuck = time.Second     // without a step, while tracing
)

// An evaluation is one attempt to run one module.
type evaluation struct {
	thread    *starlark.Thread
	start     time.Time
	base      uint64 // heap when it began
	cancelled time.Time
	overMem   bool
	overTime  bool
	abandoned chan struct{}
}

func newGuard(limits Limits) *guard {
	g := &guard{
		limits:  limits.orDefault(),
		running: make(map[*evaluation]struct{}),
		stop:    make(chan struct{}),
		done:    make(chan struct{}),
	}
	g.heap.Store(heapBytes())
	go g.watch()
	return g
}

// close ends the watcher and the executors.
func (g *guard) close() {
	close(g.stop)
	<-g.done
	for _, x := range g.idle {
		close(x.jobs)
	}
}

func heapBytes() uint64 {
	sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}

func (g *guard) watch() {
	defer close(g.done)
	t := time.NewTicker(tick)
	defer t.Stop()
	for {
		select {
		case <-g.stop:
			return
		case now := <-t.C:
			g.check(now)
		}
	}
}

func (g *guard) check(now time.Time) {
	heap := heapBytes()
	g.heap.Store(heap)
	g.mu.Lock()
	defer g.mu.Unlock()
	for e := range g.running {
		switch {
		case !e.cancelled.IsZero():
			if now.Sub(e.cancelled) > grace {
				close(e.abandoned)
				delete(g.running, e)
			}
		case heap > e.base && heap-e.base > g.limits.Memory:
			e.overMem, e.cancelled = true, now
			e.thread.Cancel(g.memoryReason())
		case now.Sub(e.start) > g.limits.Time:
			e.overTime, e.cancelled = true, now
			e.thread.Cancel(g.timeReason())
		}
	}
}

func (g *guard) memoryReason() string {
	return fmt.Sprintf("used more than %d MiB of memory", g.limits.Memory>>20)
}

func (g *guard) timeReason() string {
	return fmt.Sprintf("took longer than %v", g.limits.Time)
}

// A limitError says which limit an evaluation broke.
type limitError struct {
	reason string
	cause  error // where, if it is known
}

func (e *limitError) Error() string { return e.reason }
func (e *limitError) Unwrap() error { return e.cause }

// run evaluates by calling exec with a fresh thread, again alone if it may
// have been cancelled because of others. exec runs in a goroutine of its own,
// and may still be running when run returns.
func (g *guard) run(newThread func() *starlark.Thread, exec func(*starlark.Thread) error) error {
	g.alone.RLock()
	e, err := g.attempt(newThread(), exec)
	g.alone.RUnlock()
	if e.overMem && err != nil {
		e, err = g.attemptAlone(newThread(), exec)
	}
	if err == nil {
		return nil
	}
	if err == errAbandoned {
		err = g.trace(newThread(), exec)
	}
	switch {
	case e.overMem:
		return &limitError{g.memoryReason(), err}
	case e.overTime:
		return &limitError{g.timeReason(), err}
	case e.thread.ExecutionSteps() >= g.limits.Steps:
		return &limitError{fmt.Sprintf("took more than %d steps", g.limits.Steps), err}
	}
	return err
}

func (g *guard) attemptAlone(thread *starlark.Thread, exec func(*starlark.Thread) error) (*evaluation, error) {
	g.alone.Lock()
	defer g.alone.Unlock()
	runtime.GC()
	g.heap.Store(heapBytes())
	// Collect before the limit is reached, so that what is measured lives.
	old := debug.SetMemoryLimit(-1)
	debug.SetMemoryLimit(min(old, runtimeBytes()+int64(g.limits.Memory/4*3)))
	defer debug.SetMemoryLimit(old)
	return g.attempt(thread, exec)
}

// runtimeBytes is what a memory limit counts: all that the runtime has mapped
// and not given back.
func runtimeBytes() int64 {
	sample := []metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
	metrics.Read(sample)
	return int64(sample[0].Value.Uint64() - sample[1].Value.Uint64())
}

// trace finds out where an evaluation that was abandoned got stuck: it runs it
// again, noting the place before every step, until there are no more steps.
func (g *guard) trace(thread *starlark.Thread, exec func(*starlark.Thread) error) error {
	g.alone.RLock()
	defer g.alone.RUnlock()
	var last atomic.Pointer[starlark.EvalError]
	thread.SetMaxExecutionSteps(1)
	thread.OnMaxSteps = func(t *starlark.Thread) {
		if t.ExecutionSteps() >= g.limits.Steps {
			t.Cancel("took too many steps")
		}
		last.Store(&starlark.EvalError{Msg: errAbandoned.Error(), CallStack: t.CallStack()})
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = protected(func() error { return exec(thread) }) // it is where that matters
	}()
	defer thread.Cancel("no longer of interest")
	start, seen, since := time.Now(), last.Load(), time.Now()
	t := time.NewTicker(10 * tick)
	defer t.Stop()
	for {
		select {
		case <-done:
		case now := <-t.C:
			if l := last.Load(); l != seen {
				seen, since = l, now
			}
			if now.Sub(since) < stuck && now.Sub(start) < g.limits.Time {
				continue
			}
		}
		if l := last.Load(); l != nil {
			return l
		}
		return errAbandoned
	}
}

var errAbandoned = fmt.Errorf("one operation does not end")

func (g *guard) attempt(thread *starlark.Thread, exec func(*starlark.Thread) error) (*evaluation, error) {
	thread.SetMaxExecutionSteps(g.limits.Steps)
	e := &evaluation{thread: thread, start: time.Now(), base: g.heap.Load(), abandoned: make(chan struct{})}
	g.mu.Lock()
	g.running[e] = struct{}{}
	g.mu.Unlock()
	x := g.executor()
	x.jobs <- func() error { return exec(thread) }
	result := x.result
	select {
	case err := <-result:
		g.mu.Lock()
		delete(g.running, e)
		g.idle = append(g.idle, x)
		g.mu.Unlock()
		return e, err
	case <-e.abandoned:
		close(x.jobs) // it ends when its job does
		return e, errAbandoned
	}
}
