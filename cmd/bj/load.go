package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"bj/builtins"
	"bj/fleet"
	"bj/graph"
	"bj/lang"
	"bj/lang/diag"
	"bj/stdlib"
)

// loaded is a workspace and the recipes of it that patterns name.
type loaded struct {
	workspace *lang.Workspace
	fleet     *fleet.Fleet
	recipes   []*fleet.Recipe // sorted by label
	sums      *sums
}

// loadFleet loads the workspace of the current folder and selects recipes: with
// wildcards that leave out manual ones, or not. Mistakes in what was selected
// are the error; all others are printed as warnings.
func loadFleet(ctx context.Context, e *env, patterns []string, manualToo bool) (*loaded, error) {
	ws, result, err := e.loadWorkspace(ctx)
	if err != nil {
		return nil, err
	}
	cwd, err := ws.PackageOf(e.dir)
	if err != nil {
		return nil, err
	}
	choose := result.Select
	if manualToo {
		choose = result.SelectAll
	}
	recipes, mistakes, err := choose(patterns, cwd)
	if mistakes.HasErrors() {
		return nil, mistakes
	}
	e.diagnose(mistakes)
	var bad *lang.LabelError
	var none *builtins.NoMatchError
	switch {
	case errors.As(err, &bad):
		return nil, usage(bad.Hint, "%w", err)
	case errors.As(err, &none):
		return nil, nothing(none.Hint, "%w", err)
	case err != nil:
		return nil, err
	}
	return &loaded{ws, result.Fleet, recipes, &sums{root: ws.Root}}, nil
}

// findWorkspace finds the workspace of the current folder.
func (e *env) findWorkspace() (*lang.Workspace, error) {
	ws, err := lang.FindWorkspace(e.dir)
	if errors.Is(err, lang.ErrNoWorkspace) {
		return nil, usage("bj init starts a workspace", "%w", err)
	}
	return ws, err
}

// loadWorkspace loads the workspace of the current folder.
func (e *env) loadWorkspace(ctx context.Context) (*lang.Workspace, *builtins.Result, error) {
	ws, err := e.findWorkspace()
	if err != nil {
		return nil, nil, err
	}
	opts := builtins.Options{Version: version, Stdlib: stdlib.FS, NoCache: e.noCache, Print: e.print, Known: knownServices(ws)}
	if dir, err := e.cacheDir(); err == nil {
		opts.CacheDir = filepath.Join(dir, "load")
	}
	result, err := builtins.Load(ctx, ws, opts)
	if ctx.Err() != nil {
		return nil, nil, context.Cause(ctx)
	}
	return ws, result, err
}

// knownServices reads the services of graphs that other repositories saved.
func knownServices(ws *lang.Workspace) func(file string) ([]*fleet.Service, error) {
	return func(file string) ([]*fleet.Service, error) {
		saved, err := readSaved(ws, file)
		if err != nil {
			return nil, err
		}
		services := make([]*fleet.Service, 0, len(saved.Services))
		for _, s := range saved.Services {
			if s.State == graph.Unowned {
				continue
			}
			x := &fleet.Service{Name: s.Name, Owner: s.Owner, Kind: fleet.Kind(s.Kind), Package: s.Package, Listens: []fleet.Ports{}, Known: file,
				Pos: diag.Pos{File: s.File, Line: s.Line}}
			for _, name := range s.Pathways {
				x.Pathways = append(x.Pathways, fleet.Pathway{Name: name, Endpoints: []fleet.Endpoint{}})
			}
			services = append(services, x)
		}
		return services, nil
	}
}

// readSaved reads a saved graph of workspace(known = ...).
func readSaved(ws *lang.Workspace, file string) (*graph.Saved, error) {
	path := file
	if !filepath.IsAbs(path) {
		path = ws.Path(file)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading a known graph: %w", err)
	}
	saved, err := graph.ReadSaved(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return saved, nil
}

// print shows what a file prints.
func (e *env) print(pos diag.Pos, text string) { fmt.Fprintf(e.stderr, "%s: %s\n", pos, e.clean(text)) }
