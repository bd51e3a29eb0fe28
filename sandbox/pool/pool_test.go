package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"bj/sandbox"
)

// fake is a provider with templates, whose leases say what they started from.
type fake struct {
	sandbox.Provider // nil: what is not here must not be called
	origin           string
	fills            atomic.Int64
	bytes            int
	fail             error // of Fill
	useless          atomic.Bool

	mu   sync.Mutex
	cold int
	warm []string // folders
}

type lease struct{ sandbox.Environment }

func (f *fake) Name() string                           { return "fake" }
func (f *fake) Reap(context.Context) ([]string, error) { return []string{"inner"}, nil }
func (f *fake) Template(_ context.Context, m sandbox.MachineSpec) (sandbox.Template, error) {
	if m.CPUs == 0 {
		return sandbox.Template{}, nil
	}
	return sandbox.Template{Key: fmt.Sprintf("%s-%d-%d", f.origin, m.CPUs, m.Memory), Origin: f.origin, About: "a machine", Machine: m}, nil
}
func (f *fake) Fill(_ context.Context, t sandbox.Template, dir string) error {
	f.fills.Add(1)
	if f.fail != nil {
		os.WriteFile(filepath.Join(dir, "half"), nil, 0o600)
		return f.fail
	}
	return os.WriteFile(filepath.Join(dir, "memory"), make([]byte, max(1, f.bytes)), 0o600)
}
func (f *fake) Lease(context.Context, sandbox.Spec) (sandbox.Environment, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cold++
	return lease{}, nil
}
func (f *fake) LeaseFrom(_ context.Context, _ sandbox.Spec, from map[string]string) (sandbox.Environment, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.useless.Load() {
		return nil, fmt.Errorf("restoring: %w", sandbox.ErrTemplate)
	}
	for _, dir := range from {
		if _, err := os.Stat(filepath.Join(dir, "memory")); err != nil {
			return nil, err
		}
		f.warm = append(f.warm, filepath.Base(dir))
	}
	return lease{}, nil
}

func machines(cpus ...int) sandbox.Spec {
	var s sandbox.Spec
	for i, n := range cpus {
		s.Machines = append(s.Machines, sandbox.MachineSpec{Name: fmt.Sprintf("m-%d", i), CPUs: n, Memory: 1})
	}
	return s
}

func mustLease(t *testing.T, p *Pool, s sandbox.Spec) {
	t.Helper()
	if _, err := p.Lease(t.Context(), s); err != nil {
		t.Fatal(err)
	}
}

func names(t *testing.T, p *Pool) []string {
	t.Helper()
	all, err := p.Status()
	if err != nil {
		t.Fatal(err)
	}
	var keys []string
	for _, s := range all {
		keys = append(keys, s.Key)
	}
	slices.Sort(keys)
	return keys
}

func TestOneTemplateForAll(t *testing.T) {
	f, dir := &fake{origin: "a"}, t.TempDir()
	var all sync.WaitGroup
	for range 8 { // each as another bj would be
		p := New(f, Options{Dir: dir})
		all.Go(func() {
			if _, err := p.Lease(t.Context(), machines(1, 1, 2, 0)); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if n := f.fills.Load(); n != 2 {
		t.Errorf("templates were made %d times, and there are 2 kinds of machines", n)
	}
	if len(f.warm) != 8*3 || f.cold != 0 {
		t.Errorf("%d machines started warm, %d leases cold", len(f.warm), f.cold)
	}
	if got := names(t, New(f, Options{Dir: dir})); !slices.Equal(got, []string{"a-1-1", "a-2-1"}) {
		t.Errorf("templates: %v", got)
	}
}

func TestUpdateRetires(t *testing.T) {
	dir := t.TempDir()
	mustLease(t, New(&fake{origin: "old"}, Options{Dir: dir}), machines(1, 2))
	p := New(&fake{origin: "new"}, Options{Dir: dir})
	// One of the old ones is in use by another bj, and stays for as long.
	l, err := p.lock("old-1-1", syscall.LOCK_SH)
	if err != nil {
		t.Fatal(err)
	}
	mustLease(t, p, machines(1))
	if got := names(t, p); !slices.Equal(got, []string{"new-1-1", "old-1-1"}) {
		t.Errorf("templates: %v", got)
	}
	l.unlock()
	mustLease(t, p, machines(3))
	if got := names(t, p); !slices.Equal(got, []string{"new-1-1", "new-3-1"}) {
		t.Errorf("templates: %v", got)
	}
}

func TestBound(t *testing.T) {
	f := &fake{origin: "a", bytes: 1 << 20}
	p := New(f, Options{Dir: t.TempDir(), MaxBytes: 5 << 19}) // two and a half
	for _, cpus := range []int{1, 2, 3, 4} {
		mustLease(t, p, machines(cpus))
	}
	if got := names(t, p); !slices.Contains(got, "a-4-1") || len(got) > 3 {
		t.Errorf("templates: %v", got)
	}
}

func TestTemplateThatCannotBeUsed(t *testing.T) {
	f := &fake{origin: "a"}
	var said []string
	p := New(f, Options{Dir: t.TempDir(), Notice: func(s string) { said = append(said, s) }})
	f.useless.Store(true)
	mustLease(t, p, machines(1))
	if f.cold != 1 || len(names(t, p)) != 0 || len(said) != 1 {
		t.Errorf("%d cold leases, templates %v, said %q", f.cold, names(t, p), said)
	}
	f.useless.Store(false)
	f.fail = errors.New("the disk is full")
	mustLease(t, p, machines(1))
	mustLease(t, p, machines(1))
	if f.cold != 3 || len(said) != 2 {
		t.Errorf("%d cold leases, said %q", f.cold, said)
	}
	if entries, _ := os.ReadDir(p.opts.Dir); len(entries) != 1 {
		t.Errorf("half a template is left: %v", entries)
	}
}

func TestDeadMaker(t *testing.T) {
	f := &fake{origin: "a"}
	p := New(f, Options{Dir: t.TempDir()})
	if err := os.MkdirAll(p.draft("a-1-1"), 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := p.lock("a-1-1", syscall.LOCK_EX) // it lives
	if err != nil {
		t.Fatal(err)
	}
	if removed, err := p.Reap(t.Context()); err != nil || !slices.Equal(removed, []string{"inner"}) {
		t.Errorf("removed %v, %v", removed, err)
	}
	l.unlock()
	if removed, err := p.Reap(t.Context()); err != nil || !slices.Equal(removed, []string{"inner", "template a-1-1"}) {
		t.Errorf("removed %v, %v", removed, err)
	}
}

func TestDrainKeepsWhatIsInUse(t *testing.T) {
	f := &fake{origin: "a"}
	p := New(f, Options{Dir: t.TempDir()})
	mustLease(t, p, machines(1, 2))
	l, err := p.lock("a-2-1", syscall.LOCK_SH)
	if err != nil {
		t.Fatal(err)
	}
	defer l.unlock()
	removed, err := p.Drain()
	if err != nil || len(removed) != 1 || removed[0].Key != "a-1-1" || removed[0].Bytes == 0 {
		t.Errorf("removed %+v, %v", removed, err)
	}
	if all, _ := p.Status(); len(all) != 1 || !all[0].Busy {
		t.Errorf("left: %+v", all)
	}
}

// plain is a provider without templates.
type plain struct {
	sandbox.Provider
	leases int
}

func (p *plain) Lease(context.Context, sandbox.Spec) (sandbox.Environment, error) {
	p.leases++
	return lease{}, nil
}

func TestWithoutTemplates(t *testing.T) {
	inner := &plain{}
	p := New(inner, Options{Dir: filepath.Join(t.TempDir(), "none")})
	mustLease(t, p, machines(1))
	if inner.leases != 1 || p.Warms() {
		t.Error("a provider without templates is not passed through")
	}
	if _, err := os.Stat(p.opts.Dir); err == nil {
		t.Error("a folder was made for nothing")
	}
}
