package image

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
	"syscall"
	"time"
)

// DefaultBound is what a store may take on disk before Tidy removes something.
const DefaultBound = 20 << 30

// young is how long ago something was used that Tidy does not touch: a lease may
// be about to use it, or to start a machine from it.
const young = time.Hour

// Usage is what a store takes on disk, in bytes.
type Usage struct{ Blobs, Trees, Other int64 }

// Total is all of it.
func (u Usage) Total() int64 { return u.Blobs + u.Trees + u.Other }

// Usage measures the store.
func (s *Store) Usage() (Usage, error) {
	var u Usage
	entries, err := os.ReadDir(s.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return u, nil
	}
	if err != nil {
		return u, fmt.Errorf("measuring the cache: %w", err)
	}
	for _, e := range entries {
		n := onDisk(filepath.Join(s.Dir, e.Name()))
		switch e.Name() {
		case "blobs":
			u.Blobs = n
		case "trees":
			u.Trees = n
		default:
			u.Other += n
		}
	}
	return u, nil
}

func onDisk(path string) int64 {
	var sum int64
	filepath.WalkDir(path, func(_ string, d fs.DirEntry, err error) error {
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

// Tidy removes blobs and trees, those first that were not used for the longest
// time, until the store takes no more than bound bytes, 0 meaning DefaultBound.
// What was used within the last hour stays, and so does what Hold keeps. What is
// removed is made again when it is asked for. It returns how many bytes are free
// that were not.
func (s *Store) Tidy(ctx context.Context, bound int64) (freed int64, err error) {
	u, err := s.Usage()
	if err != nil {
		return 0, err
	}
	over := u.Total() - orDefault(bound, DefaultBound)
	if over <= 0 {
		return 0, nil
	}
	l, err := s.lock(ctx, "tidy", nil)
	if err != nil {
		return 0, err
	}
	defer l.unlock()
	held, err := s.held(ctx)
	if err != nil {
		return 0, err
	}
	type thing struct {
		path string
		used time.Time
	}
	var all []thing
	for _, dir := range []string{"blobs", "trees"} {
		entries, err := os.ReadDir(filepath.Join(s.Dir, dir))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return 0, fmt.Errorf("tidying the cache: %w", err)
		}
		for _, e := range entries {
			info, err := e.Info()
			if err != nil || held[e.Name()] || time.Since(info.ModTime()) < young {
				continue
			}
			all = append(all, thing{filepath.Join(s.Dir, dir, e.Name()), info.ModTime()})
		}
	}
	slices.SortFunc(all, func(a, b thing) int { return a.used.Compare(b.used) })
	for _, t := range all {
		if freed >= over || ctx.Err() != nil {
			break
		}
		n := onDisk(t.path)
		// Without its name it is nobody's any more, whatever happens then.
		gone := filepath.Join(s.Dir, "work", "gone-"+filepath.Base(t.path))
		if err := errors.Join(removeAll(gone), moveTo(t.path, gone), removeAll(gone)); err != nil {
			return freed, fmt.Errorf("tidying the cache: %w", err)
		}
		freed += n
	}
	return freed, ctx.Err()
}

// held returns the digests of roots that somebody holds, and of what was made of
// them.
func (s *Store) held(ctx context.Context) (map[string]bool, error) {
	locks, err := filepath.Glob(filepath.Join(s.Dir, "locks", "use-*"))
	if err != nil {
		return nil, err
	}
	held := map[string]bool{}
	for _, path := range locks {
		f, err := os.Open(path)
		if err != nil {
			continue
		}
		if syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil {
			held[strings.TrimPrefix(filepath.Base(path), "use-")] = true
		}
		f.Close()
	}
	keys, err := filepath.Glob(filepath.Join(s.Dir, "keys", "*"))
	if err != nil {
		return nil, err
	}
	for _, path := range keys {
		var m made
		b, err := os.ReadFile(path)
		if err != nil || json.Unmarshal(b, &m) != nil {
			continue
		}
		for root := range held {
			if strings.HasPrefix(m.Key, "tree of "+root) || strings.HasPrefix(m.Key, "squashfs 1 of "+root) {
				held[m.Digest] = true
			}
		}
	}
	return held, ctx.Err()
}
