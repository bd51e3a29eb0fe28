package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/pflag"

	"bj/lang"
	"bj/lang/diag"
)

func fmtCommand() *command {
	var check bool
	return &command{
		name:  "fmt",
		args:  "[FILE|FOLDER|PATTERN...]",
		short: "writes files in the one layout that all have",
		long: `without arguments: everything below the current folder. a person's line breaks
are kept. "-" formats stdin to stdout. the names of changed files go to stdout.`,
		flags: func(fs *pflag.FlagSet) {
			fs.BoolVar(&check, "check", false, "change nothing; exit 1 if a file would change")
		},
		run: func(ctx context.Context, e *env, args []string) error { return runFmt(ctx, e, args, check) },
	}
}

func runFmt(ctx context.Context, e *env, args []string, check bool) error {
	if len(args) == 1 && args[0] == "-" {
		return formatStdin(e, check)
	}
	ws, err := e.findWorkspace()
	if err != nil {
		return err
	}
	files, err := starFiles(e, ws, args)
	if err != nil {
		return err
	}
	var mistakes diag.List
	changed := 0
	for _, file := range files {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		src, err := os.ReadFile(ws.Path(file))
		if err != nil {
			return fmt.Errorf("formatting: %w", err)
		}
		out, err := lang.Format(file, src)
		var list diag.List
		if errors.As(err, &list) {
			mistakes = append(mistakes, list...)
			continue
		}
		if err != nil {
			return err
		}
		if bytes.Equal(src, out) {
			continue
		}
		changed++
		if !check {
			if err := os.WriteFile(ws.Path(file), out, 0o644); err != nil { // which keeps the mode that it has
				return fmt.Errorf("formatting: %w", err)
			}
		}
		fmt.Fprintln(e.stdout, file)
	}
	if err := mistakes.Sort().Err(); err != nil {
		return err
	}
	if check && changed > 0 {
		return &failure{code: exitNotRecovered, err: fmt.Errorf("%s would change", plural(changed, "file")), hint: "bj fmt changes them"}
	}
	return nil
}

// formatStdin formats stdin to stdout, for editors.
func formatStdin(e *env, check bool) error {
	src, err := io.ReadAll(e.stdin)
	if err != nil {
		return fmt.Errorf("reading stdin: %w", err)
	}
	out, err := lang.Format("stdin", src)
	if err != nil {
		return err
	}
	if check {
		if !bytes.Equal(src, out) {
			return exit(exitNotRecovered)
		}
		return nil
	}
	if _, err := e.stdout.exact().Write(out); err != nil {
		return fmt.Errorf("writing: %w", err)
	}
	return nil
}
