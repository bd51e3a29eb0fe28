package main

import (
	"context"
	"path/filepath"

	"bj/lang"
	"bj/sandbox"
	"bj/sandbox/image"
	"bj/sandbox/ns"
)

// defaultSandbox is the embedded provider.
const defaultSandbox = "namespace"

// sandboxes are the providers that there are.
func sandboxes() []string { return []string{defaultSandbox} }

// newStore returns what makes tools and images for the machines of a sandbox, of
// the workspace in that folder.
func newStore(cache, workspace, sandbox string) *image.Store {
	return &image.Store{Dir: filepath.Join(cache, "tools"), Workspace: workspace, Virtual: sandbox != defaultSandbox}
}

// newProvider returns the provider of that name. Source says who asked for it,
// say takes words for people.
func newProvider(ctx context.Context, name, source, cache string, images *image.Store, say func(string)) (sandbox.Provider, error) {
	switch name {
	case defaultSandbox:
		agent, err := staticAgent(ctx, cache, say)
		if err != nil {
			return nil, err
		}
		return ns.New(ns.Options{Agent: agent, Images: images, Notice: say}), nil
	case "libvirt":
		return nil, usage("--sandbox "+defaultSandbox, "bj %s does not have the sandbox \"libvirt\" yet, which %s asks for", version, source)
	}
	return nil, usage(lang.DidYouMean(name, sandboxes(), "there is: "+defaultSandbox), "there is no sandbox %q, which %s asks for", name, source)
}
