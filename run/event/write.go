package event

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
)

// Writer writes events to an io.Writer, one a line.
type Writer struct {
	mu  sync.Mutex
	w   io.Writer
	err error
}

// NewWriter returns a Writer to w.
func NewWriter(w io.Writer) *Writer { return &Writer{w: w} }

// Event writes e; it is a Sink. After an error it writes nothing more.
func (w *Writer) Event(e Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return
	}
	line, err := Marshal(e)
	if err == nil {
		_, err = w.w.Write(append(line, '\n'))
	}
	if err != nil {
		w.err = fmt.Errorf("writing events: %w", err)
	}
}

// Err returns the first error.
func (w *Writer) Err() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

// maxName bounds names of files that SafeName makes, in bytes.
const maxName = 160

// SafeName turns a label into the name of one file or folder: equal labels,
// and no others, have equal names. Slashes become "+", the colon "=", and
// whatever is not a letter, digit, dot, dash or underscore %XX.
func SafeName(label string) string {
	var b strings.Builder
	for i, c := range []byte(strings.TrimPrefix(label, "//")) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_', c == '.' && i > 0:
			b.WriteByte(c)
		case c == '/':
			b.WriteByte('+')
		case c == ':':
			b.WriteByte('=')
		default:
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	name := b.String()
	if len(name) > maxName {
		sum := sha256.Sum256([]byte(label))
		name = name[:maxName-33] + "%" + hex.EncodeToString(sum[:16])
	}
	return name
}

// unfinished is the name of a file that is being written.
const unfinished = ".new-*"

// Sweep removes what writers that were killed left in a folder, of which the
// caller knows that nobody else writes into it.
func Sweep(dir string) {
	names, _ := filepath.Glob(filepath.Join(dir, unfinished))
	for _, name := range names {
		os.Remove(name)
	}
}

// WriteFile writes data to path at once: who reads it sees all of it, or what
// was there before.
func WriteFile(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), unfinished)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(0o644)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}
