package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"bj/lang"
)

// command is one entry of the command table. Each has a file of its own.
type command struct {
	name    string
	args    string // as usage shows them: "PATTERN..."
	short   string // one line
	long    string // paragraphs
	example string // lines
	flags   func(*pflag.FlagSet)
	run     func(ctx context.Context, e *env, args []string) error
}

// commands is the command table, in the order in which help lists it.
func commands() []*command {
	return []*command{
		testCommand(),
		graphCommand(),
		runbookCommand(),
		pareCommand(),
		shellCommand(),
		listCommand(),
		showCommand(),
		historyCommand(),
		fmtCommand(),
		lintCommand(),
		initCommand(),
		doctorCommand(),
		poolCommand(),
		reportCommand(),
		docsCommand(),
		versionCommand(),
		completionCommand(),
	}
}

// later are commands that are promised and not here yet.
var later = [...]string{"drill", "lsp"}

const rootShort = "proves by running it that infrastructure comes back from the worst outage"

// execute runs the command that args name.
func execute(ctx context.Context, e *env, args []string) error {
	table := commands()
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		if err := checkName(table, args[0]); err != nil {
			return err
		}
	}
	root := newRoot(e, table)
	root.SetArgs(shield(args))
	return root.ExecuteContext(ctx)
}

// shielded marks an argument that begins like a flag and is none: a pattern
// that subtracts, such as -//recipes/broken/... No argument of a program holds
// this byte.
const shielded = "\x00"

// shield marks the patterns that subtract among args.
func shield(args []string) []string {
	args = slices.Clone(args)
	for i, a := range args {
		if rest, ok := strings.CutPrefix(a, "-"); ok && rest != "" && strings.ContainsRune("/:.", rune(rest[0])) {
			args[i] = shielded + a
		}
	}
	return args
}

// checkName says what could have been meant by a command that is not there.
func checkName(table []*command, name string) error {
	if name == cobra.ShellCompRequestCmd || name == cobra.ShellCompNoDescRequestCmd {
		return nil
	}
	names := []string{"help"}
	for _, c := range table {
		names = append(names, c.name)
	}
	if slices.Contains(names, name) {
		return nil
	}
	if slices.Contains(later[:], name) {
		return usage("bj help lists the commands that are there", "bj %s does not have the command %q yet", version, name)
	}
	hint := "bj help lists the commands"
	if near := lang.Nearest(name, names); near != "" {
		hint = fmt.Sprintf("did you mean bj %s?", near)
	} else if strings.HasPrefix(name, "//") || strings.HasPrefix(name, ":") {
		hint = "to run recipes: bj test " + name
	}
	return usage(hint, "there is no command %q", name)
}

// newRoot makes cobra's tree of the table.
func newRoot(e *env, table []*command) *cobra.Command {
	var showVersion bool
	root := &cobra.Command{
		Use:           "bj",
		Short:         rootShort,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if showVersion {
				return printVersion(e)
			}
			if len(args) > 0 {
				return checkName(table, args[0])
			}
			return cmd.Help()
		},
	}
	root.SetIn(e.stdin)
	root.SetOut(e.stdout)
	root.SetErr(e.stderr)
	root.CompletionOptions.DisableDefaultCmd = true
	root.Flags().BoolVar(&showVersion, "version", false, "print the version")
	global := globalFlags(e)
	root.PersistentFlags().AddFlagSet(global)
	completeFlags(e, root, global)
	root.SetFlagErrorFunc(flagError)
	root.SetHelpFunc(func(cmd *cobra.Command, _ []string) { printHelp(cmd.OutOrStdout(), cmd, table, global) })
	root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error {
		if !slices.Contains(colorWords, e.color) {
			return usage("", "--color is %s, not %q", strings.Join(colorWords, ", "), e.color)
		}
		return nil
	}
	for _, c := range table {
		root.AddCommand(newCommand(e, c))
	}
	root.SetHelpCommand(&cobra.Command{
		Use:               "help [COMMAND]",
		Short:             "prints the help of a command",
		ValidArgsFunction: completeNames(table),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return root.Help()
			}
			if err := checkName(table, args[0]); err != nil {
				return err
			}
			sub, _, err := root.Find(args[:1])
			if err != nil {
				return err
			}
			return sub.Help()
		},
	})
	// Every command, so that none has cobra's own words.
	for _, c := range append(root.Commands(), root) {
		c.Flags().BoolP("help", "h", false, "print this help")
	}
	return root
}

// newCommand makes cobra's command of c.
func newCommand(e *env, c *command) *cobra.Command {
	cmd := &cobra.Command{
		Use:                   strings.TrimSpace(c.name + " " + c.args),
		Short:                 c.short,
		Long:                  c.long,
		Example:               c.example,
		DisableFlagsInUseLine: true,
		Args:                  cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			for i := range args {
				args[i] = strings.TrimPrefix(args[i], shielded)
			}
			return c.run(cmd.Context(), e, args)
		},
	}
	cmd.Flags().SortFlags = false
	if c.flags != nil {
		c.flags(cmd.Flags())
	}
	cmd.ValidArgsFunction = completeArguments(e, c)
	completeFlags(e, cmd, cmd.Flags())
	return cmd
}

var colorWords = []string{"auto", "always", "never"}

// globalFlags are those of all commands.
func globalFlags(e *env) *pflag.FlagSet {
	fs := pflag.NewFlagSet("all", pflag.ContinueOnError)
	fs.StringVar(&e.color, "color", "auto", "colours: `when` is auto, always or never")
	fs.BoolVar(&e.noCache, "no-cache", false, "neither use nor fill the cache")
	return fs
}

// flagError says what could have been meant by a flag that is not there.
func flagError(cmd *cobra.Command, err error) error {
	hint := fmt.Sprintf("bj help %s lists the flags", cmd.Name())
	if !cmd.HasParent() {
		hint = "bj help lists the commands and their flags"
	}
	var names []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, "--"+f.Name) })
	if _, bad, ok := strings.Cut(err.Error(), "unknown flag: "); ok {
		if near := lang.Nearest(bad, names); near != "" {
			hint = fmt.Sprintf("did you mean %s?", near)
		}
	}
	return usage(hint, "%w", err)
}

// printHelp prints the help of cmd, or of bj itself.
func printHelp(w io.Writer, cmd *cobra.Command, table []*command, global *pflag.FlagSet) {
	if cmd.HasParent() {
		for _, c := range table {
			if c.name == cmd.Name() {
				fmt.Fprint(w, c.help()+"\nflags of all commands:\n"+global.FlagUsages())
				return
			}
		}
	}
	fmt.Fprintf(w, "bj %s\n\nusage:\n  bj COMMAND [ARGUMENT...] [FLAG...]\n\ncommands:\n", rootShort)
	for _, c := range table {
		fmt.Fprintf(w, "  %-12s %s\n", c.name, c.short)
	}
	fmt.Fprintf(w, "  %-12s %s\n\nflags of all commands:\n%s", "help", "prints the help of a command", global.FlagUsages())
}

// help is the command's help, without the flags of all commands.
func (c *command) help() string {
	var b strings.Builder
	fmt.Fprintf(&b, "bj %s %s\n\nusage:\n  %s\n", c.name, c.short, c.usage())
	if c.long != "" {
		fmt.Fprintf(&b, "\n%s\n", c.long)
	}
	if c.example != "" {
		fmt.Fprintf(&b, "\nexamples:\n%s\n", c.example)
	}
	if flags := c.flagUsages(); flags != "" {
		fmt.Fprintf(&b, "\nflags:\n%s", flags)
	}
	return b.String()
}

// usage is the command's usage line.
func (c *command) usage() string {
	line := strings.TrimSpace("bj " + c.name + " " + c.args)
	if c.flags != nil {
		line += " [FLAG...]"
	}
	return line
}

// flagUsages lists the command's own flags.
func (c *command) flagUsages() string {
	if c.flags == nil {
		return ""
	}
	fs := pflag.NewFlagSet(c.name, pflag.ContinueOnError)
	fs.SortFlags = false
	c.flags(fs)
	return fs.FlagUsages()
}

// completeNames completes the names of commands.
func completeNames(table []*command) func(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return func(_ *cobra.Command, args []string, prefix string) (names []cobra.Completion, _ cobra.ShellCompDirective) {
		for _, c := range table {
			if len(args) == 0 && strings.HasPrefix(c.name, prefix) {
				names = append(names, cobra.CompletionWithDesc(c.name, c.short))
			}
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}

// noArguments refuses arguments.
func noArguments(name string, args []string) error {
	if len(args) > 0 {
		return usage("", "bj %s takes no argument, and got %q", name, args[0])
	}
	return nil
}
