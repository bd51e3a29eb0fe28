// Package hub is what both providers share: the network that the machines of
// an environment hang on, and the process that owns it.
//
//	Gateway   the process whose network namespace is the hub: rules, relay, witness
//	Net       the hub's links and routes; veth pairs and taps look the same to it
//	Client    bj's side of an environment: seal, canaries, flows, and the only dial
//	Peer      the channel between the two, which also carries descriptors
//	Inside    a seal that a machine with a kernel of its own applies itself
//	Lease     a record that is locked for as long as an owner lives; Reap
package hub
