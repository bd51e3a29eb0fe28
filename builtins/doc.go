// Package builtins is what a .star file sees: it turns the calls of service,
// recipe, step and the others into a fleet.Fleet.
//
//	Load       workspace → Result
//	Result     the fleet, and all mistakes
//	Select     patterns → recipes, with the mistakes that matter to them
//	Reference  every builtin with its parameters, for help and editors
//
// # From calls to a fleet
//
// While a module runs, its builtins check their arguments and collect what they
// declare in its state (state.go). A call does not stop at a mistake: it
// records it and returns something that stands for what was meant, marked as
// bad, so that the next mistake is found too and nothing follows from the
// first. Adding a builtin means a row in vocabulary (reference.go) and a
// function from its call to a value; its getters take the arguments in the
// order of the row.
//
// Machines get their addresses when the hardware is declared, since scripts and
// endpoints may ask for them from then on. Those that are not written count
// upwards from 198.18.0.10 and fd62:6a::10 in order of declaration, through one
// file; a file that loads others goes on where the one of them with most
// machines ended, so that hardware of a library and of its user do not meet.
// Each machine has an address of each family, and a declared one takes the
// place of its own. Two machines of one recipe with one address are a mistake.
//
// Hardware, conditions, steps and the others are plain values until a recipe
// takes them. A recipe resolves all that it can see: the machines of each
// action, the scripts that functions make for them, names of units. What
// needs other files is resolved by the linker (link.go) when all have been
// read, in the order of files: services, pathways, duplicates. The same files
// give the same fleet.
//
// # Mistakes
//
// Every mistake counts against the module whose top level was running,
// whichever file's code made it. Select makes errors of those that count
// against what the selected recipes are made of, load and allow, or against a
// file of a package that a pattern names, and warnings of all others. A service
// that was declared with a mistake, or that a broken file would have declared,
// is a phantom: whoever names it is not blamed, but needs the file that is.
//
// # Facts
//
// What a module without mistakes declared is encoded (codec.go) for lang's
// cache, before it is linked, and is all that is needed of a file that has not
// changed. A new field of package fleet that is not coded fails the round trip
// of the tests; a change of meaning raises factsVersion.
package builtins
