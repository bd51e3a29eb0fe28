# Who may do what with orders. Data, not code: an operator can read it, and
# what is not allowed here is denied.
package bell.orders

import rego.v1

default allow := false

allow if input.action in grants[input.user]

grants := {
	"ann": ["place", "cancel"],
	"bob": ["place"],
}
