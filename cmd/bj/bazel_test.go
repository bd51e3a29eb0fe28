package main

import (
	"archive/zip"
	"context"
	"encoding/xml"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"bj/sandbox"
)

// bazelStubs stand in for repositories that Bazel fetches before anything else,
// though nothing here needs what they hold: the tests ask no network.
var bazelStubs = map[string]map[string]string{
	"remote_coverage_tools": {"BUILD": `package(default_visibility = ["//visibility:public"])
filegroup(name = "coverage_report_generator")
filegroup(name = "lcov_merger")
filegroup(name = "coverage_output_generator")
`},
	"rules_cc": {"BUILD": "", "cc/BUILD": "", "cc/defs.bzl": `cc_binary = native.cc_binary
cc_import = native.cc_import
cc_library = native.cc_library
cc_test = native.cc_test
cc_toolchain = native.cc_toolchain
cc_toolchain_suite = native.cc_toolchain_suite
`},
	"rules_java": {"BUILD": "", "java/BUILD": "", "java/defs.bzl": `java_binary = native.java_binary
java_import = native.java_import
java_library = native.java_library
java_runtime = native.java_runtime
java_test = native.java_test
java_toolchain = native.java_toolchain
`},
	// Builds nothing: what is looked at are the labels of the tree's own targets.
	"io_bazel_rules_go": {"BUILD": "", "go/BUILD": "", "go/def.bzl": `def _impl(ctx):
    out = ctx.actions.declare_file(ctx.label.name + ".stub")
    ctx.actions.write(out, "")
    return [DefaultInfo(files = depset([out]))]

_go = rule(implementation = _impl, attrs = {
    "srcs": attr.label_list(allow_files = [".go", ".s"]),
    "embedsrcs": attr.label_list(allow_files = True),
    "deps": attr.label_list(),
    "embed": attr.label_list(),
    "importpath": attr.string(),
    "pure": attr.string(),
    "static": attr.string(),
})

def go_library(deps = [], **kwargs):
    _go(deps = [d for d in deps if not d.startswith("@")], **kwargs)

go_binary = go_library
`},
}

// bazelExample is the workspace of those who use the rules.
var bazelExample = filepath.Join("..", "..", "examples", "bazel")

// bazelRun runs Bazel in examples/bazel, and returns what it printed and its
// exit code.
func bazelRun(t *testing.T, dir string, args ...string) (string, int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	start := time.Now()
	words := []string{
		"--host_jvm_args=-Xmx1g",
		"--host_jvm_args=-XX:TieredStopAtLevel=1", "--host_jvm_args=-XX:+UseSerialGC", // it does not live long
		"--host_jvm_args=-XX:-UseContainerSupport", // Java trips over mixed cgroups
		"--output_user_root=" + filepath.Join(dir, "bazel"), "--max_idle_secs=60", "--nohome_rc"}
	words = append(words, args[0])
	if args[0] == "test" {
		words = append(words, "--noshow_progress", "--test_output=errors", "--spawn_strategy=linux-sandbox,local")
		for name := range bazelStubs {
			words = append(words, "--override_repository="+name+"="+filepath.Join(dir, "stub", name))
		}
	}
	cmd := exec.CommandContext(ctx, "bazel", append(words, args[1:]...)...)
	cmd.Dir = bazelExample
	cmd.Env = append(os.Environ(), "PATH="+filepath.Join(dir, "bin")+":"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		t.Fatalf("bazel %v: %v\n%s", args, ctx.Err(), out)
	}
	t.Logf("bazel %s: %v", args[0], time.Since(start).Round(time.Second/10))
	if err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// TestBazel runs the workspace of examples/bazel under a real Bazel: what passes
// and what does not, in shards, with a filter, and beyond its time.
func TestBazel(t *testing.T) {
	if _, err := exec.LookPath("bazel"); err != nil {
		t.Skip("there is no bazel: apt-get install bazel-bootstrap")
	}
	if os.Geteuid() != 0 {
		t.Skip("what is left behind is looked for in /run/bj, which is root's")
	}
	dir := t.TempDir()
	for name, files := range bazelStubs {
		files["WORKSPACE"] = "workspace(name = \"" + name + "\")\n"
		for file, text := range files {
			path := filepath.Join(dir, "stub", name, file)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	// As the static agent is built, so that its packages are compiled once.
	build := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", filepath.Join(dir, "bin", "bj"), ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building a static bj: %v\n%s", err, out)
	}
	t.Cleanup(func() {
		links, _ := filepath.Glob(filepath.Join(bazelExample, "bazel-*"))
		for _, l := range links {
			os.Remove(l)
		}
		// Bazel takes the right to write from what it made.
		filepath.WalkDir(filepath.Join(dir, "bazel"), func(p string, d os.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				os.Chmod(p, 0o755)
			}
			return nil
		})
	})
	defer bazelRun(t, dir, "shutdown")

	// The example, and from there the fleet and the Go packages of bj itself.
	out, code := bazelRun(t, dir, "test", "//...", "@bj//:fmt", "@bj//:cycles", "@bj//cmd/bj:bj_toolchain")
	if code != 0 || !strings.Contains(out, "@bj//:cycles") || !strings.Contains(out, "@bj//:fmt") {
		t.Fatalf("bazel test //... exits with %d:\n%s", code, out)
	}
	logs := filepath.Join(bazelExample, "bazel-testlogs")
	read := func(name string) string {
		data, err := os.ReadFile(filepath.Join(logs, name))
		if err != nil {
			t.Error(err)
		}
		return string(data)
	}

	// Each recipe is run once, in one of the shards.
	name := regexp.MustCompile(`<testcase classname="notes" name="([^"]+)"`)
	var ran []string
	for _, shard := range []string{"1", "2", "3"} {
		for _, m := range name.FindAllStringSubmatch(read("notes/recover/shard_"+shard+"_of_3/test.xml"), -1) {
			ran = append(ran, m[1])
		}
	}
	slices.Sort(ran)
	if got := strings.Join(ran, " "); got != "blue_team green_team red_team" {
		t.Errorf("the shards ran %q, want each recipe once", got)
	}

	// The filter chooses; a shard without a recipe is no failure. What fails says
	// why, in the log and in the XML; what takes too long is torn down in the grace
	// that Bazel gives; what its machine is to blame for is said.
	before := leases(t)
	out, code = bazelRun(t, dir, "test", "--test_timeout=10,300,900,3600", "--keep_going", "--test_filter=green|//broken:",
		"//notes:recover", "//broken:forgotten", "//broken:endless", "//broken:vacuous")
	if code != 3 {
		t.Errorf("bazel test of broken recipes exits with %d, want 3:\n%s", code, out)
	}
	ran = nil
	for _, shard := range []string{"1", "2", "3"} {
		text := read("notes/recover/shard_" + shard + "_of_3/test.xml")
		if strings.Contains(text, "<failure") || strings.Contains(text, "<error") {
			t.Errorf("shard %s, with a filter:\n%s", shard, text)
		}
		for _, m := range name.FindAllStringSubmatch(text, -1) {
			ran = append(ran, m[1])
		}
	}
	if got := strings.Join(ran, " "); got != "green_team" {
		t.Errorf("--test_filter ran %q, want green_team alone", got)
	}
	for _, text := range []string{read("broken/forgotten/test.log"), read("broken/forgotten/test.xml")} {
		for _, want := range []string{"blocked by the seal while it ran:", "tcp 10.9.0.53:53", "it belongs to names"} {
			if !strings.Contains(text, want) {
				t.Errorf("what is said of //broken:forgotten lacks %q:\n%s", want, text)
			}
		}
	}
	if text := read("broken/endless/test.log"); !strings.Contains(text, "Test timed out") || !strings.Contains(text, "error (interrupted)  //broken:endless") {
		t.Errorf("the log of what took too long:\n%s", text)
	}
	if text := read("broken/vacuous/test.xml"); !strings.Contains(text, `type="vacuous"`) {
		t.Errorf("the XML of what proves nothing:\n%s", text)
	}
	if after := leases(t); len(after) > len(before) {
		t.Errorf("left behind: %v", after)
	}
	var report struct {
		Suites []struct {
			Failures int `xml:"failures,attr"`
		} `xml:"testsuite"`
	}
	if err := xml.Unmarshal([]byte(read("broken/forgotten/test.xml")), &report); err != nil || len(report.Suites) != 1 || report.Suites[0].Failures != 1 {
		t.Errorf("the XML says %+v, %v", report, err)
	}
	z, err := zip.OpenReader(filepath.Join(logs, "broken/forgotten/test.outputs/outputs.zip"))
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	for _, want := range []string{"events.jsonl", "broken=forgotten/result.json", "broken=forgotten/rules.nft", "runbooks/index.html", "broken=forgotten/logs/mail/01-ask-for-a-name.log"} {
		if !slices.ContainsFunc(z.File, func(f *zip.File) bool { return f.Name == want }) {
			t.Errorf("the outputs lack %s", want)
		}
	}
}

// leases lists what environments have left on this machine.
func leases(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir("/run/bj")
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// TestBazelFiles holds what Bazel reads after the test's end: whether it came to
// its end, and whether its machine was at fault.
func TestBazelFiles(t *testing.T) {
	dir := t.TempDir()
	vars := map[string]string{
		bazelPremature: filepath.Join(dir, "premature"), bazelFault: filepath.Join(dir, "fault"), bazelTemp: dir,
		"TEST_SHARD_INDEX": "0", "TEST_TOTAL_SHARDS": "2", "TEST_SHARD_STATUS_FILE": filepath.Join(dir, "shards"),
		"BJ_SANDBOX": "none", "TMPDIR": os.Getenv("TMPDIR"),
	}
	t.Setenv("TMPDIR", dir)
	if err := os.WriteFile(filepath.Join(dir, "bj.star"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	e := newEnv()
	e.dir = dir
	e.getenv = func(name string) string { return vars[name] }
	err := (&testFlags{bazel: true, repeat: 1}).run(t.Context(), e, []string{"//..."})
	if code := exitCode(err); code != exitNothing {
		t.Errorf("exit code %d (%v), want %d", code, err, exitNothing)
	}
	for file, want := range map[string]bool{"premature": false, "fault": false, "shards": true} {
		if _, err := os.Stat(filepath.Join(dir, file)); (err == nil) != want {
			t.Errorf("%s is there: %v, want %v", file, err == nil, want)
		}
	}
	delete(vars, bazelTemp)
	if err := (&testFlags{bazel: true, repeat: 1}).run(t.Context(), e, []string{"//..."}); exitCode(err) != exitUsage {
		t.Errorf("without Bazel: %v", err)
	}
}

type stagerFunc func([]sandbox.Tool) error

func (f stagerFunc) Stage(_ context.Context, tools []sandbox.Tool, _ *sandbox.Image, _ func(string)) ([]sandbox.File, error) {
	return nil, f(tools)
}

// TestTargets holds that a target is what Bazel built, and nothing where Bazel
// was not told to.
func TestTargets(t *testing.T) {
	var got []sandbox.Tool
	inner := stagerFunc(func(tools []sandbox.Tool) error { got = tools; return nil })
	tools := []sandbox.Tool{{Name: "a", Target: "//zk:server"}, {Name: "b", Path: "/bin/b"}}
	s := targetStager{inner, map[string]string{"//zk:server": "/out/server"}, true}
	if _, err := s.Stage(t.Context(), slices.Clone(tools), nil, nil); err != nil || got[0].Path != "/out/server" || got[0].Target != "" || got[1].Path != "/bin/b" {
		t.Errorf("staged %+v, %v", got, err)
	}
	s.programs = nil
	got = nil
	if _, err := s.Stage(t.Context(), slices.Clone(tools), nil, nil); err == nil || got != nil || !strings.Contains(sandbox.AsError(err, sandbox.CodeLease).Hint, `tools = ["//zk:server"]`) {
		t.Errorf("a target that Bazel does not give: %+v, %v", got, err)
	}
	s.only = false
	if _, err := s.Stage(t.Context(), slices.Clone(tools), nil, nil); err != nil || got[0].Target != "//zk:server" {
		t.Errorf("outside of Bazel: %+v, %v", got, err)
	}
}
