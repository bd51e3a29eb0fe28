package seal

// ApplyInSteps is Apply as it is where the socket takes no large batch.
func ApplyInSteps(netNS int, r *Ruleset) (*Table, error) {
	t := &Table{enc: encoding{flags: tableFlagOwner}}
	if err := t.open(netNS); err != nil {
		return nil, err
	}
	return t, t.ReplaceInSteps(r)
}

// ReplaceInSteps is Replace in the same case.
func (t *Table) ReplaceInSteps(r *Ruleset) error {
	if err := t.prepare(r); err != nil {
		return err
	}
	msgs, err := t.enc.messages(r, t.rules)
	if err != nil {
		return err
	}
	t.rules = r
	return t.putInSteps(msgs)
}

// Persists reports whether the kernel keeps t's tables without their owner.
func (t *Table) Persists() bool { return t.enc.flags&tableFlagPersist != 0 }
