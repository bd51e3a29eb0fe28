// Package stdlib is the Starlark library that every workspace has: its files
// are loaded as @bj//stdlib:NAME.star. It holds what two recipes share and
// nothing that only one of them needs.
package stdlib

import "embed"

// FS holds the library's files, at its root.
//
//go:embed *.star
var FS embed.FS
