// Package pool keeps machines warm: a sandbox.Provider around a Provider.
//
//	lease    machines start from templates, where the provider has them
//	wipe     nothing is wiped and used again: a lease is destroyed, and the next
//	         one starts from the template, which no lease can change
//	update   templates of another origin (agent, bj, kernel), and beyond the bound
//	         those that were not used for the longest time, are removed
//
// A template is a folder, named by the digest of all that is in it:
//
//	KEY/         complete: it got its name when nothing was left to do
//	.KEY         being made; removed when its maker has died
//	locks/KEY    held alone by who makes or removes it, shared by who starts
//	             machines from it; the kernel drops a dead owner's
//
// The pool knows of templates only. Leases are the provider's own records, so
// that a crash of bj loses none, and no machine is anybody's but its lease's.
// Around a provider without templates (machines of namespaces start in
// milliseconds) the pool passes everything through.
package pool

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"bj/sandbox"
)

// Options are the pool's settings; Dir must be set.
type Options struct {
	Dir string // of templates; made when needed
	// MaxBytes bounds what all templates take on disk; 0 means 8 GiB.
	MaxBytes int64
	// Notice takes words for people.
	Notice func(string)
}

// Pool is a provider whose machines start from templates where they can.
type Pool struct {
	sandbox.Provider
	templates sandbox.Templater // nil if the provider has none
	opts      Options

	mu   sync.Mutex
	said map[string]bool
}

// New returns a pool around p. It does nothing until something is asked of it.
func New(p sandbox.Provider, opts Options) *Pool {
	if opts.MaxBytes == 0 {
		opts.MaxBytes = 8 << 30
	}
	t, _ := p.(sandbox.Templater)
	return &Pool{Provider: p, templates: t, opts: opts, said: map[string]bool{}}
}

// Warms reports whether the provider has templates at all.
func (p *Pool) Warms() bool { return p.templates != nil }

// Lease implements sandbox.Provider. Templates that are missing are made first,
// since a recipe leases its machines at least twice. What goes wrong with a
// template makes a lease slower, and nothing else.
func (p *Pool) Lease(ctx context.Context, spec sandbox.Spec) (sandbox.Environment, error) {
	if p.templates == nil {
		return p.Provider.Lease(ctx, spec)
	}
	from, keys := map[string]string{}, map[string]bool{}
	var held []*lock
	defer func() {
		for _, l := range held {
			l.unlock()
		}
	}()
	locked := map[string]string{}
	for _, m := range spec.Machines {
		t, err := p.templates.Template(ctx, m)
		if err != nil {
			return nil, err
		}
		if t.Key == "" {
			continue
		}
		dir, ok := locked[t.Key]
		if !ok {
			l, path, err := p.use(ctx, t)
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			if err != nil {
				p.say(fmt.Sprintf("no template of %s: %v", t.About, err))
			} else {
				held, dir = append(held, l), path
			}
			locked[t.Key] = dir
		}
		if dir != "" {
			from[m.Name], keys[t.Key] = dir, true
		}
	}
	if len(from) == 0 {
		return p.Provider.Lease(ctx, spec)
	}
	env, err := p.templates.LeaseFrom(ctx, spec, from)
	if err == nil || ctx.Err() != nil || !errors.Is(err, sandbox.ErrTemplate) {
		return env, err
	}
	p.say(fmt.Sprintf("leasing without templates: %v", err))
	for _, l := range held {
		l.unlock()
	}
	held = nil
	for key := range keys {
		if _, err := p.remove(key); err != nil {
			p.say(err.Error())
		}
	}
	return p.Provider.Lease(ctx, spec)
}

// Reap implements sandbox.Provider: beside what the provider finds, it removes
// templates whose maker has died.
func (p *Pool) Reap(ctx context.Context) ([]string, error) {
	removed, err := p.Provider.Reap(ctx)
	entries, rerr := os.ReadDir(p.opts.Dir)
	if errors.Is(rerr, fs.ErrNotExist) {
		rerr = nil
	}
	errs := []error{err, rerr}
	for _, e := range entries {
		key, part := strings.CutPrefix(e.Name(), ".")
		if !part {
			continue
		}
		l, err := p.lock(key, syscall.LOCK_EX)
		if errors.Is(err, errHeld) {
			continue
		}
		if err == nil {
			err = os.RemoveAll(p.draft(key))
			l.unlock()
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		removed = append(removed, "template "+short(key))
	}
	return removed, errors.Join(errs...)
}

// Fill makes the template that m would start from, if it is missing, and says
// what it is.
func (p *Pool) Fill(ctx context.Context, m sandbox.MachineSpec) (sandbox.Template, error) {
	if p.templates == nil {
		return sandbox.Template{}, fmt.Errorf("machines of the sandbox %s have no templates", p.Name())
	}
	t, err := p.templates.Template(ctx, m)
	if err != nil || t.Key == "" {
		return t, err
	}
	l, _, err := p.use(ctx, t)
	if err != nil {
		return t, err
	}
	l.unlock()
	return t, nil
}

// record is what is known of a template, in its folder.
type record struct {
	Key    string    `json:"key"`
	Origin string    `json:"origin"`
	About  string    `json:"about"`
	Made   time.Time `json:"made"`
}

const recordFile = "template.json"

// use returns the folder of a template and a lock under which it stays; it is
// made if need be.
func (p *Pool) use(ctx context.Context, t sandbox.Template) (*lock, string, error) {
	dir := filepath.Join(p.opts.Dir, t.Key)
	for {
		l, err := p.wait(ctx, t.Key, syscall.LOCK_SH)
		if err != nil {
			return nil, "", err
		}
		now := time.Now()
		if err := os.Chtimes(dir, now, now); err == nil {
			return l, dir, nil
		} else if !errors.Is(err, fs.ErrNotExist) {
			l.unlock()
			return nil, "", err
		}
		l.unlock()
		if err := p.make(ctx, t); err != nil {
			return nil, "", err
		}
	}
}

func (p *Pool) make(ctx context.Context, t sandbox.Template) error {
	if err := p.update(t.Origin); err != nil {
		return err
	}
	l, err := p.wait(ctx, t.Key, syscall.LOCK_EX)
	if err != nil {
		return err
	}
	defer l.unlock()
	dir, draft := filepath.Join(p.opts.Dir, t.Key), p.draft(t.Key)
	if _, err := os.Stat(dir); err == nil {
		return nil // another has made it meanwhile
	}
	if err := errors.Join(os.RemoveAll(draft), os.Mkdir(draft, 0o700)); err != nil {
		return err
	}
	defer os.RemoveAll(draft)
	if err := p.templates.Fill(ctx, t, draft); err != nil {
		return err
	}
	text, err := json.Marshal(record{Key: t.Key, Origin: t.Origin, About: t.About, Made: time.Now().UTC()})
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(draft, recordFile), append(text, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(draft, dir)
}

// update removes templates that are of no use to anybody of this origin, and
// what is beyond the bound. What is in use stays.
func (p *Pool) update(origin string) error {
	all, err := p.Status()
	if err != nil {
		return err
	}
	slices.SortFunc(all, func(a, b Status) int { return b.Used.Compare(a.Used) })
	var sum int64
	for _, s := range all {
		sum += s.Bytes
		if s.Origin == origin && sum <= p.opts.MaxBytes {
			continue
		}
		removed, err := p.remove(s.Key)
		if err != nil {
			return err
		}
		if removed {
			sum -= s.Bytes
		}
	}
	return nil
}

// Status is what is known of one template.
type Status struct {
	Key, Origin, About string
	Bytes              int64 // on disk
	Made, Used         time.Time
	Busy               bool // machines are being started from it, or it is being made or removed
}

// Status returns all templates, the one used last first.
func (p *Pool) Status() ([]Status, error) {
	entries, err := os.ReadDir(p.opts.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading templates: %w", err)
	}
	var all []Status
	for _, e := range entries {
		dir := filepath.Join(p.opts.Dir, e.Name())
		var r record
		text, err := os.ReadFile(filepath.Join(dir, recordFile))
		if err != nil || json.Unmarshal(text, &r) != nil || r.Key != e.Name() {
			continue // a draft, or the locks
		}
		s := Status{Key: r.Key, Origin: r.Origin, About: r.About, Made: r.Made, Bytes: size(dir)}
		if info, err := e.Info(); err == nil {
			s.Used = info.ModTime()
		}
		l, err := p.lock(r.Key, syscall.LOCK_EX)
		if s.Busy = err != nil; !s.Busy {
			l.unlock()
		}
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b Status) int { return b.Used.Compare(a.Used) })
	return all, nil
}

// Drain removes all templates that are not in use, and returns them.
func (p *Pool) Drain() ([]Status, error) {
	all, err := p.Status()
	if err != nil {
		return nil, err
	}
	var removed []Status
	for _, s := range all {
		ok, err := p.remove(s.Key)
		if err != nil {
			return removed, err
		}
		if ok {
			removed = append(removed, s)
		}
	}
	return removed, nil
}

// remove removes a template, and reports false if somebody uses it.
func (p *Pool) remove(key string) (bool, error) {
	l, err := p.lock(key, syscall.LOCK_EX)
	if errors.Is(err, errHeld) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer l.unlock()
	// It loses its name first: half a template is never one.
	if err := os.RemoveAll(p.draft(key)); err != nil {
		return false, err
	}
	if err := os.Rename(filepath.Join(p.opts.Dir, key), p.draft(key)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	return true, os.RemoveAll(p.draft(key))
}

func (p *Pool) draft(key string) string { return filepath.Join(p.opts.Dir, "."+key) }

// say says something once.
func (p *Pool) say(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.opts.Notice != nil && !p.said[text] {
		p.said[text] = true
		p.opts.Notice(text)
	}
}

func short(key string) string { return key[:min(12, len(key))] }

// size is what a folder takes on disk.
func size(dir string) int64 {
	var sum int64
	filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil // removed meanwhile
		}
		if info, err := d.Info(); err == nil {
			if st, ok := info.Sys().(*syscall.Stat_t); ok {
				sum += st.Blocks * 512
			}
		}
		return nil
	})
	return sum
}
