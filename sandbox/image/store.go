// Package image makes what machines are given before the seal closes, and
// keeps it in a content-addressed cache: the programs of recipes, and what
// machines boot.
//
//	Store   the cache; makes each thing once, whoever asks, and however often
//	Root    a root file system (root.go), of Debian's packages (debian.go) or of
//	        an OCI image (oci.go), as a folder or as a disk
//	Kernel  a kernel and its modules (kernel.go)
//	Boot    all that a virtual machine boots (boot.go)
//
// A tool is built (go.go), fetched (fetch.go), unpacked from a Debian package
// and what it depends on (deb.go), made by Bazel (bazel.go), or used where it
// lies. The cache folder holds
//
//	blobs/HEX    a file, named by the SHA-256 of what it holds
//	trees/HEX    a folder of unpacked packages, or of a root, named by what it
//	             was made of
//	keys/HEX     what was asked for (a module and version, and how it is built)
//	             and which blob or tree that gave
//	locks/HEX    held while a key is being made; the kernel drops a dead owner's
//	work/HEX     unfinished work under that lock; the next owner removes it
//	apt/         apt's private state
//
// Blobs, trees and keys appear by rename, complete, in this order, so a build
// that is killed leaves nothing that could be taken for a result. What has a
// key is used without asking any network.
package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"bj/sandbox"
)

// bin is where tools lie on a machine.
const bin = "/usr/local/bin/"

// Store makes tools and images, and keeps them. It implements sandbox.Stager, and may be
// used by several goroutines and processes at once. Dir must be set; all other
// fields are optional.
type Store struct {
	Dir       string // the cache; made when needed
	Workspace string // folder that relative paths and ./cmd/x are relative to
	// Virtual is set where machines are virtual: those that name no image run on
	// Standard, and not on the host's root.
	Virtual bool
	// Override puts a program of the host in the place of the tool of that name.
	Override map[string]string
	// Fresh makes everything again, whatever the cache holds.
	Fresh bool
	// Jobs is how many tools are built at once; 0 means two, as the compiler is
	// parallel itself and a linker needs a gigabyte.
	Jobs int
	// Timeout bounds the making of one tool, from when it has its turn; 0 means an
	// hour, as a compiler on a busy machine is slow and not stuck. It waits for its
	// turn for at most three times as long.
	Timeout time.Duration
	// MaxSize bounds a download in bytes; 0 means 4 GiB.
	MaxSize int64
	// Client downloads; nil means http.DefaultClient.
	Client *http.Client
	// Env is added to the environment of go, apt-get and bazel.
	Env []string
	// AptOptions are lines of apt.conf that are put after all others.
	AptOptions []string

	once    sync.Once
	jobs    chan struct{}
	waiting atomic.Int64 // for one of jobs
	mine    sync.Map     // keys that this Store is making

	goMu       sync.Mutex
	goVersions map[string]string // by the folder in which go was asked
}

var _ sandbox.Stager = (*Store)(nil)

// Stage returns the files that put tools on PATH of a machine that boots an
// image: programs at /usr/local/bin, and for Debian packages a tree over the
// root, in the order of tools. The image and what is not in the cache are made,
// several tools at once. All failures are reported together, as one
// *sandbox.Error that names image or tools.
func (s *Store) Stage(ctx context.Context, tools []sandbox.Tool, i *sandbox.Image, progress func(string)) ([]sandbox.File, error) {
	if progress == nil {
		progress = func(string) {}
	}
	b, err := s.base(ctx, i, progress)
	if err != nil {
		return nil, err
	}
	files := make([][]sandbox.File, len(tools))
	errs := make([]error, len(tools))
	var wg sync.WaitGroup
	for i := range tools {
		wg.Go(func() { files[i], errs[i] = s.stage(ctx, tools[i], b, progress) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		first := sandbox.AsError(err, sandbox.CodeLease)
		return nil, &sandbox.Error{Code: sandbox.CodeLease, Err: err, Hint: first.Hint}
	}
	var all []sandbox.File
	for _, fs := range files {
		all = append(all, fs...)
	}
	return all, nil
}

func (s *Store) stage(ctx context.Context, t sandbox.Tool, b base, progress func(string)) ([]sandbox.File, error) {
	limit := s.timeout()
	if t.Go != "" {
		limit += 3 * limit // it may have to wait for its turn
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	files, err := s.make(ctx, t, b, progress)
	if err == nil {
		return files, nil
	}
	e := sandbox.AsError(err, sandbox.CodeLease)
	return nil, &sandbox.Error{Code: sandbox.CodeLease, Err: fmt.Errorf("making tool %s: %w", t.Name, err), Hint: e.Hint}
}

func (s *Store) make(ctx context.Context, t sandbox.Tool, b base, progress func(string)) ([]sandbox.File, error) {
	if p, ok := s.Override[t.Name]; ok {
		return s.inPlace(t.Name, p, " (--tool)")
	}
	switch {
	case t.Path != "":
		return s.inPlace(t.Name, t.Path, "")
	case strings.HasPrefix(t.Go, "./"):
		return s.goLocal(ctx, t, progress)
	case t.Go != "":
		return s.goModule(ctx, t, progress)
	case t.Deb != "":
		return s.deb(ctx, t, b, progress)
	case t.URL != "":
		return s.fetch(ctx, t, progress)
	case t.Target != "":
		return s.bazel(ctx, t, progress)
	}
	return nil, errors.New("it has no source")
}

// inPlace uses a program of the host where it lies.
func (s *Store) inPlace(name, path, how string) ([]sandbox.File, error) {
	if !filepath.IsAbs(path) {
		path = filepath.Join(s.Workspace, path)
	}
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a file", path)
	}
	if st.Mode()&0o111 == 0 {
		return nil, hint(fmt.Errorf("%s is not executable", path), "chmod +x "+path)
	}
	digest, err := fileDigest(path)
	if err != nil {
		return nil, err
	}
	// A link would be followed by the machine, which sees another tree.
	source, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, err
	}
	return program(name, source, digest, path+how), nil
}

func program(name, source, digest, about string) []sandbox.File {
	return []sandbox.File{{
		Path: bin + name, Mode: 0o755, Source: source, ReadOnly: true,
		About: name + ": " + about, Digest: digest,
	}}
}

// made is what a key leads to.
type made struct {
	Key    string `json:"key"`
	Digest string `json:"digest"`         // of the blob or tree
	Size   int64  `json:"size"`           // of the blob in bytes; 0 for a tree
	Tree   bool   `json:"tree,omitempty"` // a tree rather than a blob
	About  string `json:"about"`          // where it came from, for people
}

func (s *Store) source(m made) string {
	if m.Tree {
		return filepath.Join(s.Dir, "trees", m.Digest)
	}
	return s.blob(m.Digest)
}

func (s *Store) blob(digest string) string { return filepath.Join(s.Dir, "blobs", digest) }

// cached returns what key leads to, calling create if nothing does. Create has
// the key's lock and an empty folder to work in; what it returns must be in the
// store already.
func (s *Store) cached(ctx context.Context, key string, progress func(string), create func(work string) (made, error)) (made, error) {
	if m, ok := s.lookup(key); ok && !s.Fresh {
		return m, nil
	}
	id := textDigest(key)
	l, err := s.lock(ctx, id, func() {
		if _, ok := s.mine.Load(key); !ok {
			progress("waiting for another bj, which is making " + key)
		}
	})
	if err != nil {
		return made{}, err
	}
	defer l.unlock()
	s.mine.Store(key, nil)
	defer s.mine.Delete(key)
	if m, ok := s.lookup(key); ok && !s.Fresh {
		return m, nil // the one that had the lock has made it
	}
	work := filepath.Join(s.Dir, "work", id)
	defer removeAll(work)
	if err := removeAll(work); err != nil { // of one that was killed
		return made{}, err
	}
	if err := os.MkdirAll(work, 0o755); err != nil {
		return made{}, err
	}
	short := watchRoom(s.Dir, os.TempDir())
	m, err := create(work)
	if dir := short(); err != nil {
		return made{}, full(dir, err)
	}
	m.Key = key
	return m, s.record(work, m)
}

// leastRoom is so little, in bytes, that whatever goes wrong on such a disk went
// wrong for that.
const leastRoom = 32 << 20

// watchRoom watches how much room the disks of dirs have, until what it returns is
// called, which names the first that was full meanwhile. Programs that fail on a
// full disk remove what they had made, and not all say why they failed.
func watchRoom(dirs ...string) (short func() string) {
	look := func() string {
		for _, dir := range dirs {
			var fs syscall.Statfs_t
			if syscall.Statfs(dir, &fs) == nil && int64(fs.Bavail)*fs.Bsize < leastRoom {
				return dir
			}
		}
		return ""
	}
	stop, found := make(chan struct{}), make(chan string, 1)
	go func() {
		every := time.NewTicker(50 * time.Millisecond)
		defer every.Stop()
		for {
			if dir := look(); dir != "" {
				found <- dir
				return
			}
			select {
			case <-every.C:
			case <-stop:
				found <- look()
				return
			}
		}
	}()
	return func() string { close(stop); return <-found }
}

// leastImage is how much room, in bytes, it takes to make a root of Debian's
// packages or to unpack a kernel, at the very least.
const leastImage = 256 << 20

// roomForImage refuses to begin what cannot end well: apt waits for minutes on a
// full disk, and says little then.
func roomForImage(dir string) error {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(dir, &fs); err != nil {
		return fmt.Errorf("asking how much room there is in %s: %w", dir, err)
	}
	if free := int64(fs.Bavail) * fs.Bsize; free < leastImage {
		return full(dir, fmt.Errorf("%d MiB are left, and images take %d or more", free>>20, leastImage>>20))
	}
	return nil
}

// full says of an error that the disk of dir was full, or that some disk was, if
// the error says so itself.
func full(dir string, err error) error {
	text := err.Error()
	switch {
	case strings.Contains(text, " is full: "):
		return err
	case dir != "":
		dir = "the disk of " + dir
	case errors.Is(err, syscall.ENOSPC) || strings.Contains(text, "No space left") || strings.Contains(text, "enough free space"):
		dir = "a disk"
	default:
		return err
	}
	return hint(fmt.Errorf("%s is full: %w", dir, err), "df -h says which; BJ_CACHE names another folder for tools and images, TMPDIR one for what is half made")
}

func (s *Store) lookup(key string) (made, bool) {
	var m made
	b, err := os.ReadFile(filepath.Join(s.Dir, "keys", textDigest(key)))
	if err != nil || json.Unmarshal(b, &m) != nil || m.Key != key {
		return made{}, false
	}
	st, err := os.Stat(s.source(m))
	if err != nil || st.IsDir() != m.Tree || !m.Tree && st.Size() != m.Size {
		return made{}, false // somebody tidied the cache; it is made again
	}
	s.touch(m.Digest) // which a cache that cannot be written need not allow
	return m, true
}

func (s *Store) record(work string, m made) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	tmp := filepath.Join(work, "key")
	if err := os.WriteFile(tmp, append(b, '\n'), 0o644); err != nil {
		return err
	}
	return moveTo(tmp, filepath.Join(s.Dir, "keys", textDigest(m.Key)))
}

// keep moves a finished file into the store, under its digest, as a program.
func (s *Store) keep(tmp, about string) (made, error) { return s.keepAs(tmp, about, 0o555) }

// keepData does so with a file that is no program.
func (s *Store) keepData(tmp, about string) (made, error) { return s.keepAs(tmp, about, 0o444) }

func (s *Store) keepAs(tmp, about string, mode os.FileMode) (made, error) {
	st, err := os.Stat(tmp)
	if err != nil {
		return made{}, err
	}
	digest, err := fileDigest(tmp)
	if err != nil {
		return made{}, err
	}
	if err := os.Chmod(tmp, mode); err != nil {
		return made{}, err
	}
	if err := sync1(tmp); err != nil {
		return made{}, err
	}
	return made{Digest: digest, Size: st.Size(), About: about}, moveTo(tmp, s.blob(digest))
}

// touch marks a blob or tree as used now: what has not been used for the longest
// time goes first.
func (s *Store) touch(digest string) error {
	now := time.Now()
	for _, dir := range []string{"blobs", "trees"} {
		err := os.Chtimes(filepath.Join(s.Dir, dir, digest), now, now)
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// Hold keeps what r is and what was made of it from being removed by Tidy until
// the function that it returns is called, or this process ends.
func (s *Store) Hold(ctx context.Context, r Root) (letGo func(), err error) {
	l, err := s.share(ctx, "use-"+r.Digest)
	if err != nil {
		return nil, err
	}
	return l.unlock, nil
}

// turn waits for one of the places in which something is built. It returns the
// context in which that is done, what gives the place back, and in words how much
// waits behind it, which is empty if nothing does.
func (s *Store) turn(ctx context.Context) (building context.Context, release func(), more string, err error) {
	s.once.Do(func() { s.jobs = make(chan struct{}, orDefault(s.Jobs, min(2, runtime.NumCPU()))) })
	s.waiting.Add(1)
	select {
	case s.jobs <- struct{}{}:
	case <-ctx.Done():
		s.waiting.Add(-1)
		return nil, nil, "", fmt.Errorf("waiting for a turn to build: %w", ctx.Err())
	}
	if n := s.waiting.Add(-1); n > 0 {
		more = fmt.Sprintf(", then %d more", n)
	}
	ctx, cancel := context.WithTimeout(ctx, s.timeout())
	return ctx, func() { cancel(); <-s.jobs }, more, nil
}

func (s *Store) timeout() time.Duration { return orDefault(s.Timeout, time.Hour) }

// hint makes err one of staging, with words that mend it.
func hint(err error, words string) error {
	return &sandbox.Error{Code: sandbox.CodeLease, Err: err, Hint: words}
}

func orDefault[T comparable](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}
