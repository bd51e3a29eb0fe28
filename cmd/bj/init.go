package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"mvdan.cc/sh/v3/syntax"

	"bj/lang"
)

func initCommand() *command {
	return &command{
		name:  "init",
		args:  "[FOLDER]",
		short: "starts a workspace with one recipe that recovers at once",
		long: `writes bj.star and recipes/notes/notes.star into the folder (the current one),
and changes nothing that is there. the recipe needs nothing but a shell: run it,
break it, and read what bj says.`,
		example: `  bj init && bj test //...`,
		run:     runInit,
	}
}

func runInit(ctx context.Context, e *env, args []string) error {
	if len(args) > 1 {
		return usage("", "bj init takes one folder, and got %d", len(args))
	}
	dir := e.dir
	if len(args) == 1 {
		dir = e.path(args[0])
	}
	files := []struct{ path, text string }{
		{"bj.star", fmt.Sprintf(initWorkspace, workspaceName(dir), version)},
		{"recipes/notes/notes.star", initRecipe},
	}
	for _, f := range files {
		if _, err := os.Lstat(filepath.Join(dir, f.path)); err == nil {
			return usage("a workspace is there already: bj test //...", "%s is there, and bj init changes nothing that is", filepath.Join(dir, f.path))
		} else if !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("looking for a workspace: %w", err)
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("starting a workspace: %w", err)
	}
	if outer, err := lang.FindWorkspace(dir); err == nil {
		fmt.Fprintf(e.stderr, "bj: warning: %s is part of the workspace %s, which does not see it from now on\n", dir, outer.Root)
	}
	for _, f := range files {
		path := filepath.Join(dir, f.path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return fmt.Errorf("starting a workspace: %w", err)
		}
		if err := os.WriteFile(path, []byte(f.text), 0o644); err != nil {
			return fmt.Errorf("starting a workspace: %w", err)
		}
		fmt.Fprintf(e.stdout, "wrote %s\n", f.path)
	}
	there := ""
	if len(args) == 1 && filepath.Clean(dir) != filepath.Clean(e.dir) {
		quoted, err := syntax.Quote(args[0], syntax.LangPOSIX)
		if err != nil {
			return fmt.Errorf("quoting the folder's name: %w", err)
		}
		there = "cd " + quoted + " && "
	}
	fmt.Fprintf(e.stdout, "now run: %sbj test //...\n", there)
	return nil
}

// workspaceName makes a name of a folder's.
func workspaceName(dir string) string {
	name := regexp.MustCompile(`[^a-z0-9]+`).ReplaceAllString(strings.ToLower(filepath.Base(dir)), "-")
	if name = strings.Trim(name, "-"); name == "" {
		return "fleet"
	}
	return name
}

const initWorkspace = `"""The workspace: everything below this folder. Labels begin here, with //."""

workspace(
    name = %q,
    bj = ">=%s",
)
`

const initRecipe = `"""Notes, the smallest service worth recovering: a file that is served from a backup."""

service(
    name = "notes",
    doc = "Keeps the notes that the team wrote.",
    owner = "notes-oncall",
)

machine = hardware("notes")

recipe(
    name = "restore",
    service = "notes",
    doc = "Bring the notes back on an empty machine, from the backup alone.",
    estimate = "1m",
    hardware = [machine],
    # Put on the machine before it is sealed. An operator finds it in the vault.
    tooling = [
        file(
            "/backup/notes.txt",
            content = "the spare keys are in the blue box\n",
        ),
    ],
    # Nothing of the outside may be healthy. To open something: allow("names").
    conditions = [],
    strategy = [
        step(
            "Restore the notes from the backup",
            run = """
                mkdir -p /srv/notes
                cp /backup/notes.txt /srv/notes/notes.txt
            """,
        ),
        step(
            "Start the service",
            daemon = True,
            expect = "notes are served",
            run = """
                echo "notes are served"
                while sleep 1; do date > /srv/notes/alive; done
            """,
        ),
    ],
    validation = [
        validate(
            "the notes are there",
            expect = "blue box",
            run = "cat /srv/notes/notes.txt",
        ),
        validate(
            "the service is alive",
            expect = "[0-9]:[0-9]",
            run = "cat /srv/notes/alive",
        ),
    ],
)
`
