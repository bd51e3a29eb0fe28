package main

import (
	"context"

	"bj/lang"
	"bj/sandbox"
	"bj/sandbox/ns"
)

// defaultSandbox is the embedded provider.
const defaultSandbox = "namespace"

// sandboxes are the providers that there are.
func sandboxes() []string { return []string{defaultSandbox} }

// newProvider returns the provider of that name. Source says who asked for it,
// say takes words for people.
func newProvider(ctx context.Context, name, source, cache string, say func(string)) (sandbox.Provider, error) {
	switch name {
	case defaultSandbox:
		agent, err := staticAgent(ctx, cache, say)
		if err != nil {
			return nil, err
		}
		return ns.New(ns.Options{Agent: agent, Notice: say}), nil
	case "libvirt":
		return nil, usage("--sandbox "+defaultSandbox, "bj %s does not have the sandbox \"libvirt\" yet, which %s asks for", version, source)
	}
	return nil, usage(lang.DidYouMean(name, sandboxes(), "there is: "+defaultSandbox), "there is no sandbox %q, which %s asks for", name, source)
}
