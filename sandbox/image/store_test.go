package image

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"bj/sandbox"
)

// helperDir makes the test binary stage a tool in that cache and exit.
const helperDir = "BJ_IMAGE_TEST_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(helperDir); dir != "" {
		s := &Store{Dir: dir, Timeout: time.Minute}
		_, err := s.Stage(context.Background(), []sandbox.Tool{hello}, nil, func(w string) { fmt.Println(w) })
		fmt.Println("end:", err)
		os.Exit(0)
	}
	if dir := os.Getenv(mountsDir); dir != "" {
		mountAndWait(dir)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

var hello = sandbox.Tool{Name: "hello", Go: "example.test/hello@v1.0.0"}

// words collects progress.
type words struct {
	mu sync.Mutex
	w  []string
}

func (w *words) say(s string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.w = append(w.w, s)
}

func (w *words) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Join(w.w, "\n")
}

// stage stages one tool and returns the files, which must be in order.
func stage(t *testing.T, s *Store, tool sandbox.Tool) ([]sandbox.File, string) {
	t.Helper()
	var w words
	files, err := s.Stage(t.Context(), []sandbox.Tool{tool}, nil, w.say)
	if err != nil {
		t.Fatalf("staging %s: %v", tool.Name, err)
	}
	for _, f := range files {
		if !f.ReadOnly || !strings.HasPrefix(f.Path, "/") || f.Mode != 0o755 {
			t.Errorf("%+v is no program of a machine", f)
		}
	}
	return files, w.String()
}

// refused stages one tool and checks that the error says all of want.
func refused(t *testing.T, s *Store, tool sandbox.Tool, want ...string) {
	t.Helper()
	files, err := s.Stage(t.Context(), []sandbox.Tool{tool}, nil, nil)
	var e *sandbox.Error
	if !errors.As(err, &e) || e.Code != sandbox.CodeLease {
		t.Fatalf("staging %s: files %v, error %v; want one of code lease", tool.Name, files, err)
	}
	said := e.Error() + "\nhint: " + e.Hint
	for _, w := range append(want, tool.Name) {
		if !strings.Contains(said, w) {
			t.Errorf("the error does not say %q:\n%s", w, said)
		}
	}
}

func write(t *testing.T, path, text string, mode os.FileMode) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	return path
}

func output(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
	return string(out)
}

func entries(t *testing.T, dir string) []string {
	t.Helper()
	es, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	var names []string
	for _, e := range es {
		names = append(names, e.Name())
	}
	return names
}

func hexOf(s string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(s))) }

func TestPath(t *testing.T) {
	ws := t.TempDir()
	write(t, ws+"/tools/run", "#!/bin/sh\n", 0o755)
	write(t, ws+"/tools/data", "x", 0o644)
	s := &Store{Dir: t.TempDir(), Workspace: ws, Override: map[string]string{"candidate": ws + "/tools/run"}}

	files, _ := stage(t, s, sandbox.Tool{Name: "run", Path: "tools/run"})
	if f := files[0]; f.Path != "/usr/local/bin/run" || f.Source != ws+"/tools/run" || f.Digest != hexOf("#!/bin/sh\n") {
		t.Errorf("a program of the workspace became %+v", f)
	}
	files, _ = stage(t, s, sandbox.Tool{Name: "candidate", URL: "http://192.0.2.1/never", SHA256: hexOf("")})
	if f := files[0]; f.Source != ws+"/tools/run" || !strings.Contains(f.About, "--tool") {
		t.Errorf("an override became %+v", f)
	}
	refused(t, s, sandbox.Tool{Name: "gone", Path: "tools/gone"}, "no such file")
	refused(t, s, sandbox.Tool{Name: "data", Path: "tools/data"}, "not executable", "chmod +x")
	refused(t, s, sandbox.Tool{Name: "folder", Path: "tools"}, "not a file")
	refused(t, s, sandbox.Tool{Name: "nothing"}, "no source")
}

func TestFailuresAreReportedTogether(t *testing.T) {
	s := &Store{Dir: t.TempDir(), Workspace: t.TempDir()}
	_, err := s.Stage(t.Context(), []sandbox.Tool{{Name: "one", Path: "a"}, {Name: "two", Path: "b"}}, nil, nil)
	if err == nil || !strings.Contains(err.Error(), "tool one") || !strings.Contains(err.Error(), "tool two") {
		t.Errorf("two tools are missing, and the error is: %v", err)
	}
}

func TestURL(t *testing.T) {
	const body = "#!/bin/sh\necho fetched\n"
	asked := make(chan string, 100)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- r.URL.Path
		switch r.URL.Path {
		case "/tool":
			fmt.Fprint(w, body)
		case "/cut":
			w.Header().Set("Content-Length", "1000")
			fmt.Fprint(w, body)
		default:
			http.NotFound(w, r)
		}
	}))
	dir := t.TempDir()
	s := &Store{Dir: dir}
	good := sandbox.Tool{Name: "tool", URL: srv.URL + "/tool", SHA256: hexOf(body)}

	bad := good
	bad.SHA256 = hexOf("something else")
	refused(t, s, bad, bad.SHA256, good.SHA256)
	refused(t, s, sandbox.Tool{Name: "tool", URL: srv.URL + "/none", SHA256: good.SHA256}, "404")
	refused(t, s, sandbox.Tool{Name: "tool", URL: srv.URL + "/cut", SHA256: good.SHA256}, "unexpected EOF")
	refused(t, &Store{Dir: dir, MaxSize: 10}, good, "larger than")
	if got := append(entries(t, dir+"/blobs"), entries(t, dir+"/keys")...); len(got) != 0 {
		t.Errorf("what was refused is in the cache: %v", got)
	}

	files, said := stage(t, s, good)
	if !strings.Contains(said, "fetching tool from "+srv.URL) || output(t, files[0].Source) != "fetched\n" {
		t.Errorf("fetched %+v, saying:\n%s", files[0], said)
	}
	srv.Close()
	again, said := stage(t, s, good)
	if said != "" || again[0].Source != files[0].Source {
		t.Errorf("the second time, with the server gone, gives %v and says %q", again, said)
	}
	if got := entries(t, dir+"/work"); len(got) != 0 {
		t.Errorf("unfinished work is left: %v", got)
	}
}

func TestACacheThatWasTidiedIsFilledAgain(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "x") }))
	defer srv.Close()
	s := &Store{Dir: t.TempDir()}
	tool := sandbox.Tool{Name: "tool", URL: srv.URL, SHA256: hexOf("x")}
	files, _ := stage(t, s, tool)
	for _, spoil := range []func(string) error{os.Remove, func(p string) error { os.Chmod(p, 0o600); return os.Truncate(p, 0) }} {
		if err := spoil(files[0].Source); err != nil {
			t.Fatal(err)
		}
		stage(t, s, tool)
		if b, err := os.ReadFile(files[0].Source); err != nil || string(b) != "x" {
			t.Errorf("the tool is %q (%v), want it fetched again", b, err)
		}
	}
}

func TestBazel(t *testing.T) {
	ws, path := t.TempDir(), t.TempDir()
	write(t, ws+"/out/bin/prog", "#!/bin/sh\necho made by bazel\n", 0o755)
	write(t, path+"/bazel", `#!/bin/sh
case "$1" in
build) [ "$2" = //x:prog ] || { echo "no such target $2" >&2; exit 1; } ;;
cquery) echo out/bin/prog ;;
info) pwd ;;
esac
`, 0o755)
	s := &Store{Dir: t.TempDir(), Workspace: ws, Env: []string{"PATH=" + path + ":/usr/bin:/bin"}}
	files, _ := stage(t, s, sandbox.Tool{Name: "prog", Target: "//x:prog"})
	if got := output(t, files[0].Source); got != "made by bazel\n" {
		t.Errorf("the program says %q", got)
	}
	refused(t, s, sandbox.Tool{Name: "prog", Target: "//x:none"}, "no such target //x:none")
	refused(t, &Store{Dir: t.TempDir(), Env: []string{"PATH=/nonexistent"}}, sandbox.Tool{Name: "prog", Target: "//x:prog"}, "no bazel", "--tool prog=PATH")
}

// TestSmallDisk holds that nobody waits for what cannot end well.
func TestSmallDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting a small disk needs root")
	}
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=8m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
	s := &Store{Dir: dir}
	for what, make := range map[string]func() error{
		"a root":   func() error { _, err := s.Root(t.Context(), Standard(), func(string) {}); return err },
		"a kernel": func() error { _, err := s.debianKernel(t.Context(), func(string) {}); return err },
	} {
		start := time.Now()
		err := make()
		if e := sandbox.AsError(err, sandbox.CodeLease); err == nil || !strings.Contains(e.Error(), " is full: ") || !strings.Contains(e.Error(), "images take 256 or more") || !strings.Contains(e.Hint, "BJ_CACHE") {
			t.Errorf("%s: %v, hint %q", what, err, e.Hint)
		}
		if took := time.Since(start); took > 20*time.Second {
			t.Errorf("%s: that took %s", what, took)
		}
	}
}

// TestFullDisk holds that what could not be made on a full disk says so, and what
// mends it, however the program that found out put it.
func TestFullDisk(t *testing.T) {
	s := &Store{Dir: t.TempDir()}
	for _, cause := range []error{
		&os.PathError{Op: "write", Path: "/x", Err: syscall.ENOSPC},
		errors.New("running dpkg-deb: exit status 2:\ntar: /x: Cannot write: No space left on device"),
		errors.New("running apt-get install: exit status 100:\nE: You don't have enough free space in /x"),
	} {
		_, err := s.cached(t.Context(), "a thing", func(string) {}, func(string) (made, error) { return made{}, cause })
		if e := sandbox.AsError(err, sandbox.CodeLease); !strings.Contains(e.Error(), "a disk is full") || !strings.Contains(e.Hint, "BJ_CACHE") {
			t.Errorf("%v became %v, hint %q", cause, err, e.Hint)
		}
	}
	other := errors.New("running go: exit status 1")
	if _, err := s.cached(t.Context(), "a thing", func(string) {}, func(string) (made, error) { return made{}, other }); err != other {
		t.Errorf("%v became %v", other, err)
	}
}
