package main

import (
	"context"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// completeLabels completes patterns: packages first, then the labels in them.
// A workspace that does not load has no completions, and says nothing.
func completeLabels(e *env) cobra.CompletionFunc {
	return func(cmd *cobra.Command, _ []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
		quiet := newEnv()
		quiet.dir, quiet.getenv, quiet.noCache, quiet.stderr = e.dir, e.getenv, e.noCache, io.Discard
		_, result, err := quiet.loadWorkspace(cmd.Context())
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var names []string
		for _, r := range result.Fleet.Recipes {
			names = append(names, r.Label, "//"+r.Package+":all")
		}
		names = append(names, "//...")
		return matching(names, prefix), cobra.ShellCompDirectiveNoFileComp
	}
}

// completeServices completes names of services, also after commas.
func completeServices(e *env) cobra.CompletionFunc {
	return func(cmd *cobra.Command, _ []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
		quiet := newEnv()
		quiet.dir, quiet.getenv, quiet.noCache, quiet.stderr = e.dir, e.getenv, e.noCache, io.Discard
		_, result, err := quiet.loadWorkspace(cmd.Context())
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		done := prefix[:strings.LastIndex(prefix, ",")+1]
		var names []string
		for _, s := range result.Fleet.Services {
			names = append(names, done+s.Name)
		}
		return matching(names, prefix), cobra.ShellCompDirectiveNoFileComp
	}
}

func matching(names []string, prefix string) []cobra.Completion {
	names = slices.DeleteFunc(names, func(n string) bool { return !strings.HasPrefix(n, prefix) })
	slices.Sort(names)
	return slices.Compact(names)
}

func completionCommand() *command {
	return &command{
		name:  "completion",
		args:  "bash|zsh|fish",
		short: "prints a shell's completions",
		example: `  bj completion bash > /etc/bash_completion.d/bj
  source <(bj completion zsh)
  bj completion fish > ~/.config/fish/completions/bj.fish`,
		run: func(ctx context.Context, e *env, args []string) error {
			if len(args) != 1 {
				return usage("bj completion bash", "bj completion takes the name of a shell: bash, zsh or fish")
			}
			root := newRoot(e, commands())
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(e.stdout, true)
			case "zsh":
				return root.GenZshCompletion(e.stdout)
			case "fish":
				return root.GenFishCompletion(e.stdout, true)
			}
			return usage("bj completion bash", "there are no completions for %q, only for bash, zsh and fish", args[0])
		},
	}
}
