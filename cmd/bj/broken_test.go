package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// chance is what differs from one run to the next in what bj says of a recipe:
// times, process ids, and how often something was tried meanwhile.
var chance = []struct{ re, to string }{
	{`(?m)^((?:recovered|not recovered|error).*  )[0-9.]+m?s$`, "${1}TIME"},
	{`[0-9.]+m?s after it was started`, "TIME after it was started"},
	{`\btried [0-9]+ times`, "tried N times"},
	{`, ([0-9]+ times|once), by`, ", N times, by"},
	{`, [0-9]+ times: `, ", N times: "},
	{`\(pid [0-9]+`, "(pid N"},
}

// TestBroken holds that what is shown beside each recipe of recipes/broken is
// what bj says of it.
func TestBroken(t *testing.T) {
	folder := filepath.Join("..", "..", "recipes", "broken")
	recipes, err := filepath.Glob(filepath.Join(folder, "*.star"))
	if err != nil || len(recipes) == 0 {
		t.Fatalf("no recipe is broken (%v)", err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, recipe := range recipes {
		name := strings.TrimSuffix(filepath.Base(recipe), ".star")
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, self)
			cmd.Args = []string{"bj", "test", "//recipes/broken:" + name, "--color", "never", "--results", t.TempDir()}
			cmd.Dir = folder
			cmd.WaitDelay = 10 * time.Second
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			got, err := cmd.Output()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.ExitCode() != 1 && exit.ExitCode() != 3 {
				t.Fatalf("a broken recipe ended with %v\n%s%s", err, got, &stderr)
			}
			for _, c := range chance {
				got = regexp.MustCompile(c.re).ReplaceAll(got, []byte(c.to))
			}
			golden(t, strings.TrimSuffix(recipe, ".star")+".txt", got)
		})
	}
}
