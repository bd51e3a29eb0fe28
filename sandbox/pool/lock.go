package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// errHeld says that somebody else holds a lock.
var errHeld = errors.New("somebody else holds the lock")

// lock is a lock file that is held. Its holder is an open file, which the kernel
// closes with the process, however that ends.
type lock struct{ f *os.File }

func (l *lock) unlock() { l.f.Close() }

// lock takes the lock of a template, alone or shared, if it can be had.
func (p *Pool) lock(key string, how int) (*lock, error) {
	dir := filepath.Join(p.opts.Dir, "locks")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the folder of templates: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, key), os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("locking a template: %w", err)
	}
	switch err := syscall.Flock(int(f.Fd()), how|syscall.LOCK_NB); err {
	case nil:
		return &lock{f}, nil
	case syscall.EWOULDBLOCK, syscall.EINTR:
		f.Close()
		return nil, errHeld
	default:
		f.Close()
		return nil, fmt.Errorf("locking a template: %w", err)
	}
}

// wait takes the lock as soon as it can be had.
func (p *Pool) wait(ctx context.Context, key string, how int) (*lock, error) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		l, err := p.lock(key, how)
		if !errors.Is(err, errHeld) {
			return l, err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for a template: %w", context.Cause(ctx))
		}
	}
}
