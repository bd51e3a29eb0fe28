package main

import (
	"context"
	"fmt"
	"runtime"
	"runtime/debug"
)

// version is bj's version; workspace(bj = ...) is compared with it.
const version = "0.1.0"

func versionCommand() *command {
	return &command{
		name:  "version",
		short: "prints the version, the revision it was built from and the platform",
		run: func(ctx context.Context, e *env, args []string) error {
			if err := noArguments("version", args); err != nil {
				return err
			}
			return printVersion(e)
		},
	}
}

func printVersion(e *env) error {
	_, err := fmt.Fprintf(e.stdout, "bj %s%s %s/%s %s\n", version, revision(), runtime.GOOS, runtime.GOARCH, runtime.Version())
	return err
}

// revision is " (abc123)" where the build recorded it, with a + for changes
// that were not committed.
func revision() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	rev, changed := "", ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision" && len(s.Value) >= 12:
			rev = s.Value[:12]
		case s.Key == "vcs.modified" && s.Value == "true":
			changed = "+"
		}
	}
	if rev == "" {
		return ""
	}
	return fmt.Sprintf(" (%s%s)", rev, changed)
}
