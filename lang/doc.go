// Package lang hosts the recipe language: it finds a workspace, loads every
// file of it in parallel, and says of each mistake where it is. It knows no
// recipe; what files can say comes from package builtins, as values.
//
//	Workspace  the folder that holds bj.star, and its package files
//	Label      //package:name
//	Pattern    //package/..., which selects labels
//	Module     one file: what it loads, what it declared, its mistakes
//	Tree       all modules of a workspace
//	Options    builtins, limits, cache
//	Source     the text of a file, to find the place of an argument in it
//	Rule       one thing that Lint looks for
//
// # From files to a Tree
//
// Load lists the package files, and takes from the cache what it knows of
// those that have not changed (see cache.go). The others are parsed, rewritten
// and compiled, several at once. All load statements are known then, before
// anything has run: cycles among them are found and reported with the place
// of each edge (cycle.go), and the modules are run after those that they load,
// each once, by as many goroutines as Options.Jobs says. Nobody waits inside
// of a load statement, so nothing can deadlock. A module's values are frozen
// when its top level has ended, and shared.
//
// Results do not depend on scheduling: each module has a State of its own,
// made by Options.Begin and found by builtins through the thread (StateOf), and
// callers combine the modules in the order of their files. So a declaration
// belongs to the module whose top level is running, and a macro that declares
// something does so for its caller.
//
// # The dialect
//
// It is the strict one of go.starlark.net with sets and with if and for at the
// top level: no while, no recursion, no reassignment of globals; no clock, no
// randomness, no environment, no I/O.
//
// # Mistakes
//
// A module that cannot be compiled, or that an error cut off, is Broken, and so
// are those that load it; only the first of them says so. Names that nothing
// defines are reported and then stand for Undefined, so that the rest of the
// file is still read. Builtins collect their own mistakes and go on. The
// interpreter keeps the place of a call but not those of its arguments: on a
// mistake, and only then, Source parses the file again and finds them. Two gaps
// in the interpreter's suggestions are filled with Nearest: names of builtins,
// and all parameters of one.
//
// # Limits
//
// Steps are counted by the interpreter. Memory is bounded by refusing the few
// operations that make much out of little (amplify.go, which tells how), and
// by a watcher of the heap for what takes many operations (guard.go). An
// evaluation that goes beyond is tried again alone before it is blamed. What
// would exhaust the stack, in the parser or in values nested without end, is
// refused too (source.go, depth.go). An evaluation that does not react to its
// cancellation is abandoned; its goroutine lives on until the one operation
// that it is in has ended.
//
// # Who may call what
//
// A Workspace, a Label and a Pattern are values for anyone. A Tree is for one
// goroutine, except for Source, Text and Closure. Begin, End and Revive are
// called from several goroutines at once, for different modules; builtins of
// one module from one goroutine.
package lang
