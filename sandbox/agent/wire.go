package agent

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"

	"bj/sandbox"
)

// A kind says what a frame means.
type kind uint8

const (
	// From the guest.
	kindHello  kind = iota + 1 // hello; the first frame of the stream
	kindReply                  // reply: answers the request of that id
	kindStdout                 // bytes of the command's standard output
	kindStderr                 // bytes of its standard error
	kindExit                   // exit: the command's own process has ended
	kindEnd                    // nobody holds the command's pipes any more
	kindBye                    // the last frame of the stream

	// From the host.
	kindAttach   // hello, with the guest's nonce; the host's first frame
	kindStart    // start: run a command, whose id is the frame's
	kindCredit   // credit: that command's output was consumed
	kindKill     // target: kill a command and all that it started
	kindKillUnit // target: kill all commands of a unit
	kindPut      // put: a file follows as data frames of the same id
	kindData     // bytes of that file
	kindProbe    // probes: try them
	kindProbed   // look at the probes again, and let go of them
	kindInput    // input: for a command's input or terminal
	kindTried    // what have commands tried to reach?
	kindQuit     // kill everything, say bye, and end

	lastKind = kindQuit
)

// A frame is the unit of the stream: 4 bytes of payload length, 1 of kind, 4
// of id, all big-endian, then the payload.
type frame struct {
	kind    kind
	id      uint32
	payload []byte
}

const headerSize = 9

var errFrame = errors.New("malformed frame")

func putHeader(b []byte, k kind, id uint32, payload int) {
	binary.BigEndian.PutUint32(b, uint32(payload))
	b[4] = byte(k)
	binary.BigEndian.PutUint32(b[5:], id)
}

// readFrame reads one frame. io.EOF means that the stream ended between two.
// It allocates no more than what arrives, whatever the length claims.
func readFrame(r io.Reader) (frame, error) {
	var h [headerSize]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return frame{}, err
	}
	n := binary.BigEndian.Uint32(h[:])
	f := frame{kind: kind(h[4]), id: binary.BigEndian.Uint32(h[5:])}
	if f.kind == 0 || f.kind > lastKind {
		return frame{}, fmt.Errorf("%w: kind %d", errFrame, f.kind)
	}
	if n > maxFrame {
		return frame{}, fmt.Errorf("%w: %d bytes", errFrame, n)
	}
	if n <= 2*chunk {
		f.payload = make([]byte, n)
		if _, err := io.ReadFull(r, f.payload); err != nil {
			return frame{}, fmt.Errorf("reading payload: %w", noEOF(err))
		}
		return f, nil
	}
	var b bytes.Buffer
	if _, err := io.CopyN(&b, r, int64(n)); err != nil {
		return frame{}, fmt.Errorf("reading payload: %w", noEOF(err))
	}
	f.payload = b.Bytes()
	return f, nil
}

// noEOF makes an end in the middle of a frame unlike one between frames.
func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// A frameWriter writes whole frames from several goroutines. After an error,
// which may have left half a frame behind, every write fails.
type frameWriter struct {
	mu  sync.Mutex
	w   io.Writer
	err error
}

// stop makes every later write fail.
func (w *frameWriter) stop(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		w.err = err
	}
}

// write sends b, which is a frame with its header in place.
func (w *frameWriter) write(b []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return w.err
	}
	if _, err := w.w.Write(b); err != nil {
		w.err = fmt.Errorf("writing frame: %w", err)
	}
	return w.err
}

// send sends a frame whose payload is m as JSON, or nothing if m is nil.
func (w *frameWriter) send(k kind, id uint32, m any) error {
	b, err := encode(k, id, m)
	if err != nil {
		return err
	}
	return w.write(b)
}

// encode makes a whole frame of a message.
func encode(k kind, id uint32, m any) ([]byte, error) {
	var payload []byte
	if m != nil {
		var err error
		if payload, err = json.Marshal(m); err != nil {
			return nil, fmt.Errorf("encoding %T: %w", m, err)
		}
	}
	if len(payload) > maxFrame {
		return nil, fmt.Errorf("encoding %T: %d bytes are more than %d", m, len(payload), maxFrame)
	}
	b := make([]byte, headerSize, headerSize+len(payload))
	putHeader(b, k, id, len(payload))
	return append(b, payload...), nil
}

// decode is the other direction of encode.
func decode[T any](f frame) (T, error) {
	var m T
	if err := json.Unmarshal(f.payload, &m); err != nil {
		return m, fmt.Errorf("%w: %T: %w", errFrame, m, err)
	}
	return m, nil
}

// hello opens the stream in both directions.
type hello struct {
	Protocol int
	Nonce    string
}

// start runs a command. Bytes rather than strings, because scripts, arguments
// and captured values need not be UTF-8, and JSON's strings must be.
type start struct {
	Script []byte   `json:",omitempty"`
	Argv   [][]byte `json:",omitempty"`
	Env    [][]byte `json:",omitempty"` // NAME=value
	User   string   `json:",omitempty"`
	Unit   string   `json:",omitempty"`
	Input  bool     `json:",omitempty"`
	// Terminal is a sandbox.Command's.
	Terminal *sandbox.Terminal `json:",omitempty"`
}

// credit says how many bytes of a command's output the host has consumed.
type credit struct{ Bytes int }

// target is what to kill: a command, or a unit.
type target struct {
	Command uint32 `json:",omitempty"`
	Unit    string `json:",omitempty"`
}

// put announces a file of Size bytes.
type put struct {
	Path string
	Mode uint32
	Size int64
	// Absent takes away what matches Path.
	Absent bool `json:",omitempty"`
}

// reply answers a request; an empty Error means that it was done.
type reply struct {
	Error    string    `json:",omitempty"`
	Command  bool      `json:",omitempty"` // the error is a sandbox.ErrCommand
	PID      int       `json:",omitempty"` // of a command that was started
	Count    int       `json:",omitempty"` // of processes that were killed
	Outcomes []Outcome `json:",omitempty"`
	Tried    *Tried    `json:",omitempty"`
}

// exit is how a command's own process ended.
type exit struct {
	Code   int
	Signal string `json:",omitempty"`
	OOM    bool   `json:",omitempty"`
}
