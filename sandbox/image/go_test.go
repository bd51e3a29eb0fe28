package image

import (
	"archive/zip"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"bj/sandbox"
)

// goHost is a host with Go, a module proxy that is a folder, and a record of
// what the go command was asked to do.
type goHost struct {
	proxy, log string
	env        []string
}

func newGoHost(t *testing.T) *goHost {
	t.Helper()
	real, err := exec.LookPath("go")
	if err != nil {
		t.Skip("there is no Go here")
	}
	dir := t.TempDir()
	h := &goHost{proxy: dir + "/proxy", log: dir + "/log"}
	write(t, dir+"/bin/go", fmt.Sprintf("#!/bin/sh\necho \"$1\" >> %s\nexec %s \"$@\"\n", h.log, real), 0o755)
	h.env = []string{
		"PATH=" + dir + "/bin:" + os.Getenv("PATH"),
		"GOPROXY=file://" + h.proxy, "GOSUMDB=off", "GONOSUMDB=*", "GOTOOLCHAIN=local",
		"GOMODCACHE=" + dir + "/mod", "GOFLAGS=-mod=mod -modcacherw",
	}
	h.publish(t, "example.test/hello", "v1.0.0", map[string]string{
		"go.mod":       "module example.test/hello\n\ngo 1.21\n",
		"main.go":      "package main\n\nimport \"os\"\n\nfunc main() { os.Stdout.WriteString(\"hello\\n\") }\n",
		"lib/lib.go":   "package lib\n",
		"bad/main.go":  "package main\n\nfunc main() { undefinedThing() }\n",
		"cmd/b/b.go":   "package main\n\nfunc main() { print(\"b\") }\n",
		"cmd/c/doc.go": "package main\n\nfunc main() {}\n",
	})
	return h
}

// publish puts a module into the proxy.
func (h *goHost) publish(t *testing.T, module, version string, files map[string]string) {
	t.Helper()
	base := filepath.Join(h.proxy, module, "@v", version)
	write(t, base+".info", fmt.Sprintf(`{"Version":%q,"Time":"2024-01-01T00:00:00Z"}`, version), 0o644)
	write(t, base+".mod", files["go.mod"], 0o644)
	f, err := os.Create(base + ".zip")
	if err != nil {
		t.Fatal(err)
	}
	z := zip.NewWriter(f)
	for name, text := range files {
		w, err := z.Create(path.Join(module+"@"+version, name))
		if err == nil {
			_, err = w.Write([]byte(text))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(z.Close(), f.Close()); err != nil {
		t.Fatal(err)
	}
}

// asked returns how often the go command was asked to do a thing.
func (h *goHost) asked(t *testing.T, what string) int {
	t.Helper()
	b, err := os.ReadFile(h.log)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for line := range strings.Lines(string(b)) {
		if line == what+"\n" {
			n++
		}
	}
	return n
}

func TestGoModule(t *testing.T) {
	h := newGoHost(t)
	s := &Store{Dir: t.TempDir(), Env: h.env}
	files, said := stage(t, s, hello)
	if !strings.Contains(said, "building hello v1.0.0") || !strings.Contains(said, "built hello in ") || !strings.Contains(said, " MB") {
		t.Errorf("progress says:\n%s", said)
	}
	f := files[0]
	if f.Path != "/usr/local/bin/hello" || output(t, f.Source) != "hello\n" || !strings.Contains(f.About, "example.test/hello@v1.0.0, built with go1.") {
		t.Errorf("the program became %+v", f)
	}
	if got, err := fileDigest(f.Source); err != nil || got != f.Digest || filepath.Base(f.Source) != got {
		t.Errorf("%s has the digest %s (%v), and is said to have %s", f.Source, got, err, f.Digest)
	}
	if out, _ := exec.Command("ldd", f.Source).CombinedOutput(); strings.Contains(string(out), "=>") {
		t.Errorf("the program is not static:\n%s", out)
	}

	// A second run, in a process that knows nothing, on a host without network.
	again := &Store{Dir: s.Dir, Env: append(h.env, "GOPROXY=off", "GOMODCACHE="+t.TempDir())}
	files, said = stage(t, again, hello)
	if said != "" || files[0].Source != f.Source || h.asked(t, "get") != 1 || h.asked(t, "build") != 1 {
		t.Errorf("the second run says %q and gives %v", said, files)
	}
	if got := entries(t, s.Dir+"/work"); len(got) != 0 {
		t.Errorf("unfinished work is left: %v", got)
	}
}

// etcd's server is a nested module whose replace lines lead out of it, which
// makes `go install` refuse it.
func TestGoNestedModuleWithReplaceLines(t *testing.T) {
	h := newGoHost(t)
	h.publish(t, "example.test/nested/lib", "v1.2.0", map[string]string{
		"go.mod": "module example.test/nested/lib\n\ngo 1.21\n",
		"lib.go": "package lib\n\nconst Word = \"required\"\n",
	})
	h.publish(t, "example.test/nested/server/v3", "v3.5.0", map[string]string{
		"go.mod":         "module example.test/nested/server/v3\n\ngo 1.21\n\nrequire example.test/nested/lib v1.2.0\n\nreplace example.test/nested/lib => ../lib\n",
		"cmd/srv/srv.go": "package main\n\nimport \"example.test/nested/lib\"\nimport \"os\"\n\nfunc main() { os.Stdout.WriteString(lib.Word) }\n",
	})
	files, _ := stage(t, &Store{Dir: t.TempDir(), Env: h.env}, sandbox.Tool{Name: "srv", Go: "example.test/nested/server/v3/cmd/srv@v3.5.0"})
	if got := output(t, files[0].Source); got != "required" {
		t.Errorf("the program says %q", got)
	}
}

func TestGoMistakes(t *testing.T) {
	h := newGoHost(t)
	s := &Store{Dir: t.TempDir(), Env: h.env}
	refused(t, s, sandbox.Tool{Name: "bad", Go: "example.test/hello/bad@v1.0.0"}, "undefinedThing", "main.go:3")
	refused(t, s, sandbox.Tool{Name: "lib", Go: "example.test/hello/lib@v1.0.0"}, "not a program")
	refused(t, s, sandbox.Tool{Name: "gone", Go: "example.test/gone@v1.0.0"}, "example.test/gone", "module proxy")
	refused(t, s, sandbox.Tool{Name: "astray", Go: "example.test/hello/cmd@v1.0.0"}, "does not contain package", "cmd/astray@v1.0.0")
	for _, version := range []string{"", "@", "@latest", "@main", "@v1", "@1.2.3"} {
		refused(t, s, sandbox.Tool{Name: "loose", Go: "example.test/hello" + version}, "exact version", "example.test/hello@v1.2.3")
	}
	if got := append(entries(t, s.Dir+"/blobs"), entries(t, s.Dir+"/keys")...); len(got) != 0 {
		t.Errorf("what was refused is in the cache: %v", got)
	}
	refused(t, &Store{Dir: t.TempDir(), Env: []string{"PATH=/nonexistent"}}, hello, "no go on PATH", "install Go")
}

func TestGoOfTheWorkspace(t *testing.T) {
	h := newGoHost(t)
	ws := t.TempDir()
	write(t, ws+"/go.mod", "module example.test/ws\n\ngo 1.21\n", 0o644)
	main := "package main\n\nimport \"os\"\n\nfunc main() { os.Stdout.WriteString(%q) }\n"
	write(t, ws+"/cmd/x/x.go", fmt.Sprintf(main, "one"), 0o644)
	s := &Store{Dir: t.TempDir(), Workspace: ws, Env: h.env}
	tool := sandbox.Tool{Name: "x", Go: "./cmd/x"}
	first, _ := stage(t, s, tool)
	if got := output(t, first[0].Source); got != "one" {
		t.Errorf("the program says %q", got)
	}
	if again, said := stage(t, s, tool); said != "" || again[0].Digest != first[0].Digest || output(t, again[0].Source) != "one" {
		t.Errorf("nothing changed, and it says %q and makes %+v", said, again[0])
	}
	write(t, ws+"/cmd/x/x.go", fmt.Sprintf(main, "two"), 0o644)
	second, said := stage(t, s, tool)
	if got := output(t, second[0].Source); got != "two" || output(t, first[0].Source) != "one" || !strings.Contains(said, "built x in ") {
		t.Errorf("after a change the program says %q; said was %q", got, said)
	}
	refused(t, s, sandbox.Tool{Name: "y", Go: "./cmd/y"}, "cmd/y: directory not found")
}

// TestTurns holds that who waits for its turn says nothing, and who has it says
// how much waits behind it.
func TestTurns(t *testing.T) {
	h := newGoHost(t)
	s := &Store{Dir: t.TempDir(), Env: h.env, Jobs: 1}
	_, release, more, err := s.turn(t.Context())
	if err != nil || more != "" {
		t.Fatalf("the first waits: %v, %q", err, more)
	}
	var w words
	done := make(chan error)
	go func() {
		_, err := s.Stage(t.Context(), []sandbox.Tool{hello, {Name: "b", Go: "example.test/hello/cmd/b@v1.0.0"}}, nil, w.say)
		done <- err
	}()
	eventually(t, "both wait for their turn", func() bool { return s.waiting.Load() == 2 })
	if said := w.String(); said != "" {
		t.Errorf("it has no turn, and says %q", said)
	}
	release()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if said := w.String(); strings.Count(said, ", then 1 more\n") != 1 || strings.Contains(said, "then 2") || strings.Contains(said, "waiting") {
		t.Errorf("it says:\n%s", said)
	}
}

func TestSeveralBuildOnce(t *testing.T) {
	h := newGoHost(t)
	dir := t.TempDir()
	var wg sync.WaitGroup
	sources := make([]string, 4)
	for i := range sources {
		wg.Go(func() { // stores of their own, as two processes have
			files, err := (&Store{Dir: dir, Env: h.env}).Stage(t.Context(), []sandbox.Tool{hello, {Name: "b", Go: "example.test/hello/cmd/b@v1.0.0"}}, nil, nil)
			if err != nil {
				t.Error(err)
				return
			}
			sources[i] = files[0].Source + files[1].Source
		})
	}
	wg.Wait()
	for _, src := range sources {
		if src != sources[0] {
			t.Errorf("two of them have other programs: %s, %s", src, sources[0])
		}
	}
	if n := h.asked(t, "build"); n != 2 {
		t.Errorf("two tools were built %d times", n)
	}
}

// A bj that is killed while it builds must leave no lock, no half program and
// no compiler.
func TestKilledWhileBuilding(t *testing.T) {
	h := newGoHost(t)
	dir, fake := t.TempDir(), t.TempDir()
	write(t, fake+"/go", fmt.Sprintf(`#!/bin/sh
case "$1" in
env) echo "$(command -v go)" > /dev/null; exec %s env GOVERSION ;;
get) exit 0 ;;
build) printf half > "$3"; echo $$ > %s/pid.part; mv %s/pid.part %s/pid; exec sleep 1000 ;;
esac
`, realGo(t), fake, fake, fake), 0o755)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), helperDir+"="+dir, "PATH="+fake+":"+os.Getenv("PATH"))
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	var pid int
	eventually(t, "the compiler runs", func() bool {
		b, err := os.ReadFile(fake + "/pid")
		pid, _ = strconv.Atoi(strings.TrimSpace(string(b)))
		return err == nil
	})

	// While it lives, nobody else builds.
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	var w words
	_, err := (&Store{Dir: dir, Env: h.env}).Stage(ctx, []sandbox.Tool{hello}, nil, w.say)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(w.String(), "waiting for another bj") {
		t.Errorf("beside a bj that builds: error %v, saying %q", err, w.String())
	}

	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	eventually(t, "the compiler ends", func() bool { return errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) || zombie(pid) })
	if got := append(entries(t, dir+"/blobs"), entries(t, dir+"/keys")...); len(got) != 0 {
		t.Errorf("half a build is in the cache: %v", got)
	}
	files, _ := stage(t, &Store{Dir: dir, Env: h.env}, hello)
	if got := output(t, files[0].Source); got != "hello\n" {
		t.Errorf("after the kill the program says %q", got)
	}
	if got := entries(t, dir+"/work"); len(got) != 0 {
		t.Errorf("unfinished work is left: %v", got)
	}
}

func TestInterrupted(t *testing.T) {
	fake, dir := t.TempDir(), t.TempDir()
	write(t, fake+"/go", fmt.Sprintf("#!/bin/sh\n[ \"$1\" = env ] && { echo go1.0; exit; }\nmkdir $GOTMPDIR/go-build1\nsleep 1000 &\necho $! > %s/pid\nwait\n", fake), 0o755)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error)
	go func() {
		_, err := (&Store{Dir: dir, Env: []string{"PATH=" + fake + ":/usr/bin:/bin"}}).Stage(ctx, []sandbox.Tool{hello}, nil, nil)
		done <- err
	}()
	var pid int
	eventually(t, "go get runs", func() bool {
		b, err := os.ReadFile(fake + "/pid")
		pid, _ = strconv.Atoi(strings.TrimSpace(string(b)))
		return err == nil && pid != 0
	})
	cancel()
	select {
	case err := <-done:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("interrupted, it says %v", err)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("it does not end")
	}
	eventually(t, "what go get had started ends", func() bool { return errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) || zombie(pid) })
	if got := entries(t, dir+"/work"); len(got) != 0 {
		t.Errorf("unfinished work is left: %v", got)
	}
}

func realGo(t *testing.T) string {
	t.Helper()
	p, err := exec.LookPath("go")
	if err != nil {
		t.Skip("there is no Go here")
	}
	return p
}

// zombie reports whether a process has ended and nobody has waited for it.
func zombie(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, rest, _ := strings.Cut(string(b), ") ")
	return errors.Is(err, fs.ErrNotExist) || strings.HasPrefix(rest, "Z")
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited 30 s until %s", what)
		}
	}
}
