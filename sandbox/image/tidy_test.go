package image

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestTidy holds that what was used last, or is held, stays within the bound's
// reach, and that the rest goes in the order of its use.
func TestTidy(t *testing.T) {
	s := &Store{Dir: t.TempDir()}
	old := time.Now().Add(-48 * time.Hour)
	var digests []string
	for i := range 5 {
		m, err := s.cached(t.Context(), fmt.Sprintf("thing %d", i), nil, func(work string) (made, error) {
			path := filepath.Join(work, "x")
			if err := os.WriteFile(path, append(make([]byte, 1<<20), byte(i)), 0o644); err != nil {
				return made{}, err
			}
			return s.keepData(path, "a thing")
		})
		if err != nil {
			t.Fatal(err)
		}
		digests = append(digests, m.Digest)
		used := old.Add(time.Duration(i) * time.Hour)
		if err := os.Chtimes(s.blob(m.Digest), used, used); err != nil {
			t.Fatal(err)
		}
	}
	letGo, err := s.Hold(t.Context(), Root{Digest: digests[0]})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.touch(digests[1]); err != nil { // used just now
		t.Fatal(err)
	}
	there := func() string {
		text := ""
		for i, d := range digests {
			if _, err := os.Stat(s.blob(d)); err == nil {
				text += fmt.Sprint(i)
			} else if !errors.Is(err, fs.ErrNotExist) {
				t.Fatal(err)
			}
		}
		return text
	}
	if freed, err := s.Tidy(t.Context(), 0); err != nil || freed != 0 || there() != "01234" {
		t.Errorf("within the bound: freed %d, %v; left %s", freed, err, there())
	}
	// Room for four of five, and a little beside them.
	if freed, err := s.Tidy(t.Context(), 4<<20+500<<10); err != nil || freed < 1<<20 || there() != "0134" {
		t.Errorf("beyond it: freed %d, %v; left %s", freed, err, there())
	}
	if _, err := s.Tidy(t.Context(), 1); err != nil || there() != "01" {
		t.Errorf("far beyond it: %v; left %s", err, there())
	}
	letGo()
	if _, err := s.Tidy(t.Context(), 1); err != nil || there() != "1" {
		t.Errorf("no longer held: %v; left %s", err, there())
	}
	if _, ok := s.lookup("thing 0"); ok {
		t.Error("what was removed is still found")
	}
}
