package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"bj/fleet"
	"bj/lang"
	"bj/sandbox"
)

// What Bazel expects of a test, beside its exit code, comes in variables.
const (
	bazelPremature = "TEST_PREMATURE_EXIT_FILE"         // exists while the test has not come to its end
	bazelXML       = "XML_OUTPUT_FILE"                  // a JUnit report
	bazelOutputs   = "TEST_UNDECLARED_OUTPUTS_DIR"      // whatever people may want to see
	bazelTemp      = "TEST_TMPDIR"                      // the only folder that may be written
	bazelFilter    = "TESTBRIDGE_TEST_ONLY"             // --test_filter
	bazelFault     = "TEST_INFRASTRUCTURE_FAILURE_FILE" // why the test is not to blame
)

// underBazel is bj test as the test of a Bazel rule. What was not said by a flag
// comes from Bazel's variables, nothing is written outside of its folders, and a
// second SIGTERM, which Bazel may send to a group and to its leader, does not
// end bj: its grace does.
func (f *testFlags) underBazel(ctx context.Context, e *env, args []string) (err error) {
	e.patient.Store(true)
	if file := e.getenv(bazelPremature); file != "" {
		if err := os.WriteFile(file, []byte("bj has not come to its end\n"), 0o644); err != nil {
			return fmt.Errorf("writing %s: %w", bazelPremature, err)
		}
		defer func() { err = errors.Join(err, os.Remove(file)) }()
	}
	if err := f.bazelDefaults(e); err != nil {
		return err
	}
	err = f.test(ctx, e, args)
	if file := e.getenv(bazelFault); file != "" && exitCode(err) == exitError {
		text := strings.Join(f.errored, "\n") + "\n"
		if x := (*failure)(nil); !errors.As(err, &x) || x.err != nil {
			text = err.Error() + "\n"
		}
		if werr := os.WriteFile(file, []byte(text), 0o644); werr != nil {
			return errors.Join(err, fmt.Errorf("writing %s: %w", bazelFault, werr))
		}
	}
	return err
}

// bazelDefaults takes from Bazel's variables what no flag says.
func (f *testFlags) bazelDefaults(e *env) error {
	f.junit = cmp.Or(f.junit, e.getenv(bazelXML))
	if dir := e.getenv(bazelOutputs); dir != "" {
		f.report = cmp.Or(f.report, dir)
		f.runbooks = cmp.Or(f.runbooks, filepath.Join(dir, "runbooks"))
	}
	if filter := e.getenv(bazelFilter); filter != "" {
		re, err := regexp.Compile(filter)
		if err != nil {
			return usage("bazel test --test_filter=cold_start", "%s is no regular expression: %w", bazelFilter, err)
		}
		f.filter = re
	}
	temp := e.getenv(bazelTemp)
	if temp == "" {
		return usage("bj_test of defs.bzl uses it; elsewhere leave it out", "--bazel: %s is not set, so this is no test of Bazel", bazelTemp)
	}
	// Leases, too, where /run is read-only.
	if err := os.Setenv("TMPDIR", temp); err != nil {
		return fmt.Errorf("setting TMPDIR: %w", err)
	}
	world := e.getenv
	defaults := map[string]string{
		"BJ_CACHE":       filepath.Join(temp, "bj-cache"),
		"XDG_STATE_HOME": filepath.Join(temp, "bj-state"),
		"CI":             "1", // a log is no terminal
	}
	e.getenv = func(name string) string { return cmp.Or(world(name), defaults[name]) }
	return nil
}

// filtered leaves out the recipes that a filter does not name.
func (f *testFlags) filtered(e *env, recipes []*fleet.Recipe) []*fleet.Recipe {
	if f.filter == nil {
		return recipes
	}
	var left []*fleet.Recipe
	for _, r := range recipes {
		if f.filter.MatchString(r.Label) {
			left = append(left, r)
		}
	}
	fmt.Fprintf(e.stderr, "bj: the filter %q leaves %d of %s\n", f.filter, len(left), plural(len(recipes), "recipe"))
	return left
}

// targetStager is a stager to which programs that Bazel built are brought, by
// their labels.
type targetStager struct {
	sandbox.Stager
	programs map[string]string // label → path
	only     bool              // Bazel runs this: it cannot be asked for more
}

// Stage implements sandbox.Stager.
func (s targetStager) Stage(ctx context.Context, tools []sandbox.Tool, image *sandbox.Image, progress func(string)) ([]sandbox.File, error) {
	for i, t := range tools { // a slice of our own: see run.Options
		if t.Target == "" {
			continue
		}
		path, ok := s.programs[t.Target]
		if !ok && s.only {
			return nil, &sandbox.Error{Code: sandbox.CodeLease, Err: fmt.Errorf("the tool %s is the target %s, which this test does not have", t.Name, t.Target),
				Hint: fmt.Sprintf("add it to the bj_test: tools = [%q]", t.Target)}
		}
		if ok {
			tools[i].Target, tools[i].Path = "", path
		}
	}
	return s.Stager.Stage(ctx, tools, image, progress)
}

// programs parses --target.
func (f *testFlags) programs(e *env) (map[string]string, error) {
	programs := map[string]string{}
	for _, text := range f.targets {
		label, path, ok := strings.Cut(text, "=")
		if !ok || path == "" {
			return nil, usage("--target //zk:server=bazel-bin/zk/server", "--target is LABEL=PATH, not %q", text)
		}
		l, err := lang.ParseLabel(strings.TrimLeft(label, "@"), "")
		if err != nil {
			return nil, usage("", "--target: %w", err)
		}
		path = e.path(path)
		if info, err := os.Stat(path); err != nil {
			return nil, usage("", "--target %s: %w", label, err)
		} else if !info.Mode().IsRegular() || info.Mode()&0o111 == 0 {
			return nil, usage("", "--target %s: %s is no program", label, path)
		}
		programs[l.String()] = path
	}
	return programs, nil
}
