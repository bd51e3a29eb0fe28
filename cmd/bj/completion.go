package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// completeArguments completes what a command takes, as its usage says.
func completeArguments(e *env, c *command) cobra.CompletionFunc {
	first := strings.Split(strings.Trim(strings.Split(c.args+" ", " ")[0], "[]."), "|")
	files := strings.Contains(c.args, "FILE")
	return func(cmd *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
		switch {
		case strings.ToLower(first[0]) == first[0] && len(args) == 0:
			return matching(first, prefix), cobra.ShellCompDirectiveNoFileComp
		case first[0] == "NAME":
			var names []string
			for _, entry := range referenceEntries() {
				names = append(names, entry.name)
			}
			return matching(names, prefix), cobra.ShellCompDirectiveNoFileComp
		case cmd.Flags().Changed("why"): // from one service to another
			return completeServices(e)(cmd, args, prefix)
		case strings.Contains(c.args, "FOLDER") && !files:
			return nil, cobra.ShellCompDirectiveFilterDirs
		case strings.Contains(c.args, "PATTERN"), strings.Contains(c.args, "LABEL") && len(args) == 0:
			names := completeLabels(cmd.Context(), e, prefix, strings.Contains(c.args, "PATTERN"))
			if files && len(names) == 0 {
				return nil, cobra.ShellCompDirectiveDefault
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		}
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
}

// completeFlags has a command complete the values of flags.
func completeFlags(e *env, cmd *cobra.Command, flags *pflag.FlagSet) {
	flags.VisitAll(func(f *pflag.Flag) {
		if complete := completeFlag(e, f); complete != nil {
			if err := cmd.RegisterFlagCompletionFunc(f.Name, complete); err != nil {
				panic(err) // of a flag that was just found
			}
		}
	})
}

// completeFlag completes the value of a flag; nil where it is no word that is
// known, such as a file.
func completeFlag(e *env, f *pflag.Flag) cobra.CompletionFunc {
	value, _ := pflag.UnquoteUsage(f)
	words := strings.Split(value, "|")
	switch {
	case f.Name == "outage", f.Name == "impact", f.Name == "why":
		return completeServices(e)
	case f.Name == "sandbox":
		words = sandboxes()
	case f.Name == "format" && len(words) < 2: // of bj graph
		words = formats
	case f.Name == "color":
		words = colorWords
	case value == "folder":
		return func(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
			return nil, cobra.ShellCompDirectiveFilterDirs
		}
	case len(words) < 2:
		return nil
	}
	return func(_ *cobra.Command, _ []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
		return matching(slices.Clone(words), prefix), cobra.ShellCompDirectiveNoFileComp
	}
}

// completeLabels completes labels, those of the current package also as :name,
// and patterns. A workspace that does not load has no completions, and says
// nothing.
func completeLabels(ctx context.Context, e *env, prefix string, patterns bool) []cobra.Completion {
	quiet := newEnv()
	quiet.dir, quiet.getenv, quiet.noCache, quiet.stderr = e.dir, e.getenv, e.noCache, io.Discard
	ws, result, err := quiet.loadWorkspace(ctx)
	if err != nil {
		return nil
	}
	here, err := ws.PackageOf(e.dir)
	if err != nil {
		return nil
	}
	var names []string
	for _, r := range result.Fleet.Recipes {
		names = append(names, r.Label)
		if r.Package == here {
			names = append(names, ":"+r.Name)
		}
		if patterns {
			names = append(names, "//"+r.Package+":all")
		}
	}
	if patterns {
		names = append(names, "//...")
	}
	if prefix == "" { // the longer way to say what is there already
		names = slices.DeleteFunc(names, func(n string) bool { return n[0] == ':' })
	}
	return matching(names, prefix)
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
				if _, err := io.WriteString(e.stdout, bashAlone); err != nil {
					return fmt.Errorf("writing completions: %w", err)
				}
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

// bashAlone is what cobra's script calls of the package bash-completion, for a
// bash without it.
const bashAlone = `# What bash-completion would bring.
if ! declare -F _get_comp_words_by_ref >/dev/null; then
_get_comp_words_by_ref() { # -n =: cur prev words cword
    local line=${COMP_LINE:0:COMP_POINT}
    read -ra words <<<"$line"
    if [[ $line == *[[:space:]] ]]; then words+=(""); fi
    cword=$((${#words[@]} - 1))
    cur=${words[cword]} prev=${words[cword - 1]}
}
fi
if ! declare -F _filedir >/dev/null; then
_filedir() {
    local kind=-f
    if [[ ${1-} == -d ]]; then kind=-d; fi
    mapfile -t COMPREPLY < <(compgen "$kind" -- "$cur")
    compopt -o filenames 2>/dev/null
}
fi

`
