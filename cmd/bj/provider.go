package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"bj/sandbox"
	"bj/sandbox/image"
	"bj/sandbox/libvirt"
	"bj/sandbox/ns"
	"bj/sandbox/pool"
)

// defaultSandbox is the embedded provider.
const defaultSandbox = "namespace"

// virtualSandbox is the provider of virtual machines.
const virtualSandbox = "libvirt"

// sandboxes are the providers that there are.
func sandboxes() []string { return []string{defaultSandbox, virtualSandbox} }

// once says everything once.
func once(say func(string)) func(string) {
	var said sync.Map
	return func(s string) {
		if _, again := said.LoadOrStore(s, true); !again {
			say(s)
		}
	}
}

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
	case virtualSandbox:
		agent, err := staticAgent(ctx, cache, say)
		if err != nil {
			return nil, err
		}
		return pool.New(libvirt.New(libvirt.Options{
			URI: os.Getenv("BJ_LIBVIRT_URI"), Agent: agent, Notice: once(say),
			Images: images,
		}), pool.Options{Dir: filepath.Join(cache, "pool", virtualSandbox), Notice: once(say)}), nil
	}
	return nil, noSandbox(name, source)
}

// prepare removes what an earlier bj left, and then says what this host lacks for
// p, before anything is made for it.
func prepare(ctx context.Context, p sandbox.Provider, say func(string)) error {
	removed, err := p.Reap(ctx)
	if err != nil {
		return fmt.Errorf("removing what an earlier bj left: %w", err)
	}
	if len(removed) > 0 {
		say("removed what an earlier bj left: " + strings.Join(removed, ", "))
	}
	return p.Ready(ctx)
}
