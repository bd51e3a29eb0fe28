package main

import (
	"context"
)

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
