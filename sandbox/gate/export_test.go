package gate

// OpenFlows returns how many flows of UDP and ICMP r carries.
func OpenFlows(r *Relay) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.epoch.flows)
}
