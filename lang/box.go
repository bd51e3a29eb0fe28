package lang

import (
	"fmt"
	"math/bits"

	"go.starlark.net/starlark"
	"go.starlark.net/syntax"
)

// A boxedValue is the right operand of +, * or %, which asks for the left one
// before anything is allocated. It lives for one instruction.
type boxedValue struct {
	starlark.Value
	op syntax.Token
}

var _ starlark.HasBinary = boxedValue{}

// box returns y, boxed where x op y could make much out of little for some x.
func box(thread *starlark.Thread, op syntax.Token, y starlark.Value) (starlark.Value, error) {
	switch y.(type) {
	case starlark.String, starlark.Bytes:
		if op != syntax.PERCENT {
			return boxedValue{y, op}, nil
		}
	case *starlark.List, starlark.Tuple:
		if op == syntax.STAR {
			return boxedValue{y, op}, nil
		}
		if op == syntax.PLUS {
			// Not boxed: list += y must see a sequence.
			if starlark.Len(y) > maxElements {
				return nil, tooLarge("elements", maxElements)
			}
			return y, nil
		}
	case starlark.Int:
		if op == syntax.STAR {
			return boxedValue{y, op}, nil
		}
		return y, nil
	}
	if op != syntax.PERCENT {
		return y, nil
	}
	// The left operand is a number, or a format that prints each value once,
	// unless the values have names.
	n, err := printedSize(maxString, y)
	if err != nil {
		return nil, err
	}
	if n > maxString {
		return nil, tooLarge("bytes", maxString)
	}
	if m, ok := y.(starlark.Mapping); ok && n > 256 {
		return &budgetMapping{Mapping: m, thread: thread, left: maxString}, nil
	}
	return y, nil
}

// Binary does x op y, with y in the box.
func (b boxedValue) Binary(op syntax.Token, x starlark.Value, side starlark.Side) (starlark.Value, error) {
	if side != starlark.Right {
		return nil, nil
	}
	if err := b.check(x); err != nil {
		return nil, err
	}
	return starlark.Binary(op, x, b.Value)
}

func (b boxedValue) check(x starlark.Value) error {
	y := b.Value
	if b.op == syntax.PLUS {
		if n := textLen(x) + textLen(y); n > maxString {
			return tooLarge("bytes", maxString)
		}
		return nil
	}
	xi, xInt := x.(starlark.Int)
	yi, yInt := y.(starlark.Int)
	switch {
	case xInt && yInt:
		if bitLen(xi)+bitLen(yi) > maxIntBits {
			return tooLarge("bits", maxIntBits)
		}
		return nil
	case xInt:
		return checkRepeat(y, xi)
	case yInt:
		return checkRepeat(x, yi)
	}
	return nil
}

func bitLen(i starlark.Int) int {
	if _, ok := i.Int64(); ok {
		return 64
	}
	return i.BigInt().BitLen()
}

// textLen is the length of a string or bytes, else 0.
func textLen(v starlark.Value) int {
	switch v := v.(type) {
	case starlark.String:
		return len(v)
	case starlark.Bytes:
		return len(v)
	}
	return 0
}

func checkRepeat(v starlark.Value, times starlark.Int) error {
	limit, what, n := maxString, "bytes", textLen(v)
	if l, ok := v.(starlark.Sequence); ok {
		limit, what, n = maxElements, "elements", l.Len()
	}
	if n == 0 || times.Sign() <= 0 {
		return nil
	}
	count, ok := times.Uint64()
	if !ok {
		return tooLarge(what, limit)
	}
	if over, total := bits.Mul64(uint64(n), count); over != 0 || total > uint64(limit) {
		return tooLarge(what, limit)
	}
	return nil
}

// A budgetMapping gives the named values of a format as long as what they
// print stays within bounds.
type budgetMapping struct {
	starlark.Mapping
	thread *starlark.Thread
	left   int
}

func (m *budgetMapping) Get(k starlark.Value) (starlark.Value, bool, error) {
	v, found, err := m.Mapping.Get(k)
	if !found || err != nil {
		return v, found, err
	}
	n, err := printedSize(m.left, v)
	if err != nil {
		return nil, false, err
	}
	if m.left -= n; m.left < 0 {
		// A format takes every error for a missing key: say it ourselves.
		m.thread.Cancel(tooLarge("bytes", maxString).Error())
		return nil, false, fmt.Errorf("result is too large")
	}
	return v, true, nil
}
