package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bj/run/event"
)

// The recipes of testdata/verdicts say in comments what an honest bj says of
// them: see testdata/verdicts/bj.star. The tests here run all of them in a
// network of their own, with servers that note who came, as root and as an
// ordinary user, and look at what is left afterwards. Of all mistakes that bj
// can make a wrong "recovered" is the worst.

// onlyVerdicts is for those who work on a recipe of testdata/verdicts.
var onlyVerdicts = flag.String("verdicts", "", "in TestVerdicts run only what this `pattern` names, such as //dark/...")

// inMachines is for what takes hours where machines are emulated.
var inMachines = flag.Bool("in-machines", false, "run the recipes of TestVerdicts in virtual machines, of a libvirt that the lab starts")

// ran is one run of bj test: all that it wrote.
type ran struct {
	t      *testing.T
	dir    string // with report, results, junit.xml
	exit   int
	stderr string
	events []event.Event
	leases []string // names of environments
}

// bjTest runs bj test in the lab and reads its events.
func bjTest(t *testing.T, l *lab, workspace string, asRoot bool, args ...string) *ran {
	t.Helper()
	return bjTestIn(t, l, workspace, asRoot, l.folder(t, asRoot), args...)
}

// bjTestIn does so with the home of an earlier run.
func bjTestIn(t *testing.T, l *lab, workspace string, asRoot bool, dir string, args ...string) *ran {
	t.Helper()
	r := &ran{t: t, dir: dir}
	args = append([]string{"test", "--json", "--junit", filepath.Join(r.dir, "junit.xml"), "--report", filepath.Join(r.dir, "report"), "--results", filepath.Join(r.dir, "results")}, args...)
	patience := 10 * time.Minute
	if *inMachines {
		args, patience = append(args, "--sandbox", "libvirt"), 5*time.Hour
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := l.bj(ctx, t, asRoot, r.dir, args...)
	cmd.Dir = workspace
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := l.start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil && !errors.As(err, new(*exec.ExitError)) {
		t.Fatalf("%v\n%s", err, &stderr)
	}
	r.exit, r.stderr = cmd.ProcessState.ExitCode(), stderr.String()
	if err := os.WriteFile(filepath.Join(r.dir, "stdout.jsonl"), stdout.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(r.dir, "stderr.txt"), stderr.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	d := event.NewDecoder(&stdout)
	for {
		e, err := d.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatalf("reading events: %v\n%s", err, r.stderr)
		}
		r.events = append(r.events, e)
		if e.Event == event.Lease {
			r.leases = append(r.leases, e.Text)
		}
	}
	return r
}

// verdicts returns the verdict of each recipe, after checking the stream.
func (r *ran) verdicts() map[string]event.Event {
	t := r.t
	t.Helper()
	if len(r.events) < 2 {
		t.Fatalf("%d events, exit code %d\n%s", len(r.events), r.exit, r.stderr)
	}
	if first := r.events[0]; first.Event != event.Start || first.Schema != event.Schema {
		t.Errorf("the stream begins with %+v", first)
	}
	given := map[string]event.Event{}
	sealed := map[string]bool{}
	canaries := map[string]int{}
	count := map[string]int{}
	for _, e := range r.events[1 : len(r.events)-1] {
		key := e.Recipe + " " + e.Supplier
		if e.Recipe == "" || e.Time.IsZero() {
			t.Errorf("an event without recipe or time: %+v", e)
		}
		if _, over := given[e.Recipe]; over {
			t.Errorf("%s: an event after the verdict: %.300s", e.Recipe, fmt.Sprintf("%+v", e))
		}
		switch e.Event {
		case event.Sealed:
			sealed[key] = true
		case event.CanaryTried:
			if e.Held == nil || !*e.Held {
				t.Errorf("%s: a leak on %s: %s", e.Recipe, e.Machine, e.Probe)
			}
			canaries[key]++
		case event.StepStarted, event.FaultDone:
			if !sealed[key] || canaries[key] == 0 {
				t.Errorf("%s: %q began before the seal was seen to hold", e.Recipe, e.Step)
			}
		case event.VerdictGiven:
			given[e.Recipe] = e
			count[e.Verdict.Verdict]++
		}
	}
	last := r.events[len(r.events)-1]
	if last.Event != event.End || last.Totals == nil || last.Exit == nil || *last.Exit != r.exit {
		t.Fatalf("the stream ends with %+v, the exit code is %d\n%s", last, r.exit, r.stderr)
	}
	if got := *last.Totals; got.Recovered != count[event.Recovered] || got.NotRecovered != count[event.NotRecovered] || got.Errors != count[event.Errored] {
		t.Errorf("totals %+v, verdicts %v", got, count)
	}
	wantExit := exitOK
	switch {
	case count[event.NotRecovered] > 0:
		wantExit = exitNotRecovered
	case count[event.Errored] > 0:
		wantExit = exitError
	}
	if r.exit != wantExit {
		t.Errorf("exit code %d, want %d after %v", r.exit, wantExit, count)
	}
	return given
}

// check compares the verdicts with what is wanted of the labels that match.
func (r *ran) check(w *wants, asRoot bool, chosen func(label string) bool) {
	given := r.verdicts()
	if !slices.ContainsFunc(slices.Collect(maps.Keys(w.root)), chosen) {
		r.t.Error("nothing is wanted of anything")
	}
	for label := range given {
		if w.root[label] == nil {
			r.t.Errorf("%s ran, and nothing says what is wanted of it", label)
		}
	}
	for _, label := range slices.Sorted(maps.Keys(w.root)) {
		if !chosen(label) {
			continue
		}
		r.t.Run(strings.ReplaceAll(strings.TrimPrefix(label, "//"), ":", "/"), func(t *testing.T) {
			want := w.of(label, asRoot)
			e, ok := given[label]
			if !ok {
				t.Fatalf("%s: it did not run\n%s", want.place, r.stderr)
			}
			all := r.of(label)
			want.check(t, e.Verdict, all)
			t.Logf("it took %.1fs", e.Time.Sub(all[0].Time).Seconds())
			if t.Failed() {
				t.Logf("%s: the verdict was %q, code %q, failed %+v: %s\nhint: %s", want.place, e.Verdict.Verdict, code(e.Verdict), e.Verdict.Failed, e.Verdict.Reason, e.Verdict.Hint)
			}
		})
	}
}

// of returns the events of one recipe.
func (r *ran) of(label string) (es []event.Event) {
	for _, e := range r.events {
		if e.Recipe == label {
			es = append(es, e)
		}
	}
	return es
}

func code(v *event.Verdict) string {
	if v.Code == nil {
		return ""
	}
	return cmp.Or(*v.Code, "-")
}

// hide checks that none of the texts is in anything that bj wrote, in any of the
// ways in which its files write text.
func (r *ran) hide(texts []string) {
	r.t.Helper()
	var forms []string
	for _, text := range texts {
		var plain, inXML bytes.Buffer
		e := json.NewEncoder(&plain)
		e.SetEscapeHTML(false)
		if err := e.Encode(text); err != nil {
			r.t.Fatal(err)
		}
		escaped, err := json.Marshal(text)
		if err != nil {
			r.t.Fatal(err)
		}
		if err := xml.EscapeText(&inXML, []byte(text)); err != nil {
			r.t.Fatal(err)
		}
		forms = append(forms, text, strings.Trim(plain.String(), "\"\n"), strings.Trim(string(escaped), `"`), inXML.String())
	}
	slices.Sort(forms)
	forms = slices.Compact(forms)
	n := 0
	err := filepath.WalkDir(r.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || strings.HasPrefix(path, filepath.Join(r.dir, "cache")) {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		n++
		for _, form := range forms {
			if i := bytes.Index(data, []byte(form)); i >= 0 {
				r.t.Errorf("%s has %q: ...%.200q", path, form, data[max(0, i-100):])
			}
		}
		return nil
	})
	if err != nil || n < 5 {
		r.t.Errorf("%d files, %v", n, err)
	}
}

// checkReports holds that JUnit and reports say the same as the events.
func (r *ran) checkReports() {
	t := r.t
	t.Helper()
	var suites struct {
		Suites []struct {
			Cases []struct {
				Classname string    `xml:"classname,attr"`
				Name      string    `xml:"name,attr"`
				Failure   *struct{} `xml:"failure"`
				Error     *struct{} `xml:"error"`
			} `xml:"testcase"`
		} `xml:"testsuite"`
	}
	data, err := os.ReadFile(filepath.Join(r.dir, "junit.xml"))
	if err == nil {
		err = xml.Unmarshal(data, &suites)
	}
	if err != nil {
		t.Fatalf("reading the JUnit report: %v", err)
	}
	count := map[string]int{}
	for _, s := range suites.Suites {
		for _, c := range s.Cases {
			switch {
			case c.Failure != nil && c.Error == nil:
				count[event.NotRecovered]++
			case c.Error != nil && c.Failure == nil:
				count[event.Errored]++
			default:
				count[event.Recovered]++
			}
		}
	}
	totals := *r.events[len(r.events)-1].Totals
	if got := (event.Totals{Recovered: count[event.Recovered], NotRecovered: count[event.NotRecovered], Errors: count[event.Errored]}); got != totals {
		t.Errorf("JUnit says %+v, the events say %+v", got, totals)
	}
	results, err := filepath.Glob(filepath.Join(r.dir, "report", "*", "result.json"))
	if sum := totals.Recovered + totals.NotRecovered + totals.Errors; err != nil || len(results) != sum {
		t.Errorf("%d results in the report, want %d (%v)", len(results), sum, err)
	}
	given := map[string]int{}
	for _, path := range results {
		var result struct {
			Verdict string `json:"verdict"`
		}
		data, err := os.ReadFile(path)
		if err == nil {
			err = json.Unmarshal(data, &result)
		}
		if err != nil {
			t.Errorf("%s: %v", path, err)
		}
		given[result.Verdict]++
	}
	if !maps.Equal(given, count) {
		t.Errorf("the report says %v, JUnit says %v", given, count)
	}
}

// jobs is how many recipes run at once: n, or as many emulated machines as a
// small host can bear.
func jobs(n int) string {
	if *inMachines {
		n = 2
	}
	return strconv.Itoa(n)
}

// modes are as whom bj runs.
func modes(t *testing.T, f func(t *testing.T, asRoot bool)) {
	if os.Geteuid() == 0 {
		t.Run("root", func(t *testing.T) { f(t, true) })
	}
	if !*inMachines {
		t.Run("user", func(t *testing.T) { f(t, false) })
	}
}

// TestVerdicts runs all recipes whose capabilities come from production, and
// those that have none.
func TestVerdicts(t *testing.T) {
	workspace := workspaceOf(t, "testdata/verdicts")
	w := readWants(t, workspace)
	modes(t, func(t *testing.T, asRoot bool) {
		patterns, chosen := []string{"//...", "-//supply/..."}, func(label string) bool {
			return !strings.HasPrefix(label, "//supply") && !strings.HasSuffix(label, "_manual")
		}
		if *inMachines { // its image would be made, through the lab's proxy
			const made = "//later:kernel"
			every := chosen
			patterns, chosen = append(patterns, "-"+made), func(label string) bool { return label != made && every(label) }
		}
		if *onlyVerdicts != "" {
			patterns, chosen = []string{*onlyVerdicts}, func(label string) bool {
				folder := strings.TrimSuffix(*onlyVerdicts, "/...")
				return (label == folder || strings.HasPrefix(label, folder+":") || strings.HasPrefix(label, folder+"/")) && !strings.HasSuffix(label, "_manual")
			}
		}
		l := newLab(t)
		l.startLibvirt()
		r := bjTest(t, l, workspace, asRoot, append([]string{"--jobs", jobs(16)}, patterns...)...)
		r.check(w, asRoot, chosen)
		r.checkReports()
		r.hide(append(w.hidden, hostSecret))
		if *onlyVerdicts != "" { // perhaps all are refused before they have a machine
			t.Logf("production was contacted: %q", l.contacts())
			l.nothingLeft(r.leases)
			return
		}
		l.checkContacts(asRoot)
		l.checkLeftovers(r.leases)
	})
}

// TestVerdictsOfSupply runs the recipes that are supplied by others.
func TestVerdictsOfSupply(t *testing.T) {
	workspace := workspaceOf(t, "testdata/verdicts")
	w := readWants(t, workspace)
	modes(t, func(t *testing.T, asRoot bool) {
		l := newLab(t)
		r := bjTest(t, l, workspace, asRoot, "--jobs", "6", "--supply", "recipes", "//supply/...")
		r.check(w, asRoot, func(label string) bool { return strings.HasPrefix(label, "//supply") })
		r.checkReports()
		r.hide(append(w.hidden, hostSecret))
		if len(l.contacts()) != 0 {
			t.Errorf("production was contacted: %v", l.contacts())
		}
		l.checkLeftovers(r.leases)
	})
}

// TestVerdictsInWords holds that what people read hides what it must, and cannot
// talk to their terminals.
func TestVerdictsInWords(t *testing.T) {
	workspace := workspaceOf(t, "testdata/verdicts")
	w := readWants(t, workspace)
	modes(t, func(t *testing.T, asRoot bool) {
		l := newLab(t)
		for _, x := range []struct {
			patterns []string
			exit     int
			says     []string
		}{
			{[]string{"//secrets/...", "//output:escapes", "//misc:titles", "//dark:tcp4"}, exitNotRecovered, []string{"not recovered", "***", "would allow it"}},
			{[]string{"//later/..."}, exitError, []string{"cannot boot systemd"}},
			{[]string{"//misc:by_hand"}, exitOK, []string{"recovered", "Turn the key"}},
		} {
			r := &ran{t: t, dir: l.folder(t, asRoot)}
			args := append([]string{"test", "--results", filepath.Join(r.dir, "results"), "--report", filepath.Join(r.dir, "report")}, x.patterns...)
			cmd := l.bj(t.Context(), t, asRoot, r.dir, args...)
			cmd.Dir = workspace
			var out, stderr bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &stderr
			if err := l.start(cmd); err != nil {
				t.Fatal(err)
			}
			if err := cmd.Wait(); err != nil && !errors.As(err, new(*exec.ExitError)) {
				t.Fatal(err)
			}
			if code := cmd.ProcessState.ExitCode(); code != x.exit {
				t.Errorf("%q: exit code %d, want %d\n%s", x.patterns, code, x.exit, &stderr)
			}
			for name, text := range map[string][]byte{"stdout": out.Bytes(), "stderr": stderr.Bytes()} {
				if i := bytes.IndexFunc(text, func(c rune) bool { return c < ' ' && c != '\n' && c != '\t' || c == 0x7f || 0x80 <= c && c < 0xa0 }); i >= 0 {
					t.Errorf("%q: %s has a control character: ...%.100q", x.patterns, name, text[max(0, i-50):])
				}
				if err := os.WriteFile(filepath.Join(r.dir, name), text, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			for _, s := range x.says {
				if !strings.Contains(out.String()+stderr.String(), s) {
					t.Errorf("%q: nothing says %q:\n%s%s", x.patterns, s, &out, &stderr)
				}
			}
			r.hide(append(w.hidden, hostSecret))
		}
	})
}

// TestVerdictsByName holds that the tag manual keeps a recipe from patterns
// with wildcards, and from those alone. Its host is a container's, whose engine
// has mounted a file over one of /etc.
func TestVerdictsByName(t *testing.T) {
	workspace := workspaceOf(t, "testdata/verdicts")
	w := readWants(t, workspace)
	modes(t, func(t *testing.T, asRoot bool) {
		const label = "//misc:only_when_named_manual"
		l := newLab(t)
		l.do(func() {
			l.must("mounting over /etc/passwd", unix.Mount("/etc/passwd", "/etc/passwd", "", unix.MS_BIND, ""))
			l.before = l.state()
		})
		r := bjTest(t, l, workspace, asRoot, label)
		r.check(w, asRoot, func(l string) bool { return l == label })
		l.checkLeftovers(r.leases)
		for _, pattern := range []string{"//nowhere/...", "//manual/..."} {
			dir := l.folder(t, asRoot)
			cmd := l.bj(t.Context(), t, asRoot, dir, "test", "--json", "--results", filepath.Join(dir, "results"), pattern)
			cmd.Dir = workspace
			var stdout, stderr bytes.Buffer
			cmd.Stdout, cmd.Stderr = &stdout, &stderr
			if err := l.start(cmd); err != nil {
				t.Fatal(err)
			}
			if code := wait(t, cmd); code != exitNothing || strings.Contains(stdout.String(), `"verdict"`) {
				t.Errorf("%s: exit code %d, want %d\n%s%s", pattern, code, exitNothing, &stdout, &stderr)
			}
		}
	})
}

// TestVerdictsInterrupted ends bj in the middle of many recipes: by a signal it
// tears down, and after a kill the next bj does; nothing is left reachable.
func TestVerdictsInterrupted(t *testing.T) {
	workspace := workspaceOf(t, "testdata/interrupted")
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGKILL} {
		t.Run(sig.String(), func(t *testing.T) {
			modes(t, func(t *testing.T, asRoot bool) {
				l := newLab(t)
				dir := l.folder(t, asRoot)
				cmd := l.bj(t.Context(), t, asRoot, dir, "test", "--json", "--jobs", "4", "--results", filepath.Join(dir, "results"), "//long/...")
				cmd.Dir = workspace
				var stderr bytes.Buffer
				cmd.Stderr = &stderr
				stdout, err := cmd.StdoutPipe()
				if err != nil {
					t.Fatal(err)
				}
				if err := l.start(cmd); err != nil {
					t.Fatal(err)
				}
				var leases []string
				verdicts := map[string]string{}
				working, sent := 0, false
				var last event.Event
				d := event.NewDecoder(stdout)
				for {
					e, err := d.Next()
					if err != nil {
						if err != io.EOF && sig != syscall.SIGKILL {
							t.Errorf("%v\n%s", err, &stderr)
						}
						break
					}
					last = e
					switch e.Event {
					case event.Lease:
						leases = append(leases, e.Text)
					case event.OutputWritten:
						if working++; working == 4 && !sent {
							sent = true
							if err := cmd.Process.Signal(sig); err != nil {
								t.Fatal(err)
							}
						}
					case event.VerdictGiven:
						verdicts[e.Recipe] = e.Verdict.Verdict + " " + code(e.Verdict)
					}
				}
				exit := wait(t, cmd)
				if !sent {
					t.Fatalf("only %d recipes began\n%s", working, &stderr)
				}
				if sig == syscall.SIGKILL {
					// What it held ends with it, before anybody reaps.
					for deadline := time.Now().Add(15 * time.Second); len(l.running()) > 0; time.Sleep(10 * time.Millisecond) {
						if time.Now().After(deadline) {
							t.Fatalf("still there after kill -9: %v", l.running())
						}
					}
					next := bjTest(t, l, workspace, asRoot, "//short/...")
					for label, e := range next.verdicts() {
						if e.Verdict.Verdict != event.Recovered {
							t.Errorf("%s after a kill: %s", label, e.Verdict.Reason)
						}
					}
					if !asRoot { // its leases were in another TMPDIR
						next = bjTestIn(t, l, workspace, asRoot, dir, "//short/...")
					}
					if !strings.Contains(next.stderr, "removed what an earlier bj left: ") {
						t.Errorf("the next bj does not say what it removed:\n%s", next.stderr)
					}
				} else {
					if exit != exitInterrupted || last.Event != event.End || last.Exit == nil || *last.Exit != exitInterrupted {
						t.Errorf("exit code %d, the stream ends with %+v\n%s", exit, last, &stderr)
					}
					for label, v := range verdicts {
						if v != "error interrupted" {
							t.Errorf("%s: %s", label, v)
						}
					}
					if len(verdicts) != 6 {
						t.Errorf("%d verdicts, want 6", len(verdicts))
					}
				}
				l.checkLeftovers(leases)
			})
		})
	}
}

// workspaceOf copies a workspace to where an ordinary user can read it.
func workspaceOf(t *testing.T, dir string) string {
	t.Helper()
	to := filepath.Join(openDir(t), "workspace")
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return to
}
