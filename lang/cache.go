package lang

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unsafe"

	"go.starlark.net/starlark"

	"bj/lang/diag"
)

// The cache keeps what End made of the modules of one workspace, in one file,
// so that a module is evaluated again only if its bytes, or those of a module
// that it loads, have changed. Entries of modules with mistakes are not kept.
//
// Whether bytes have changed is seen by stat where that is safe: size, inode
// and both times are as they were, and the file had rested for a while when it
// was read, so that nobody wrote to it within the same tick of the clock of
// the file system (git's rule for racily clean entries). Otherwise the bytes
// are read and their SHA-256 compared.
//
// The file is replaced as a whole by renaming, so that concurrent processes
// see one version or the other; it ends with a checksum, and one that is
// damaged, or was written under another key, is as good as none.
const cacheMagic = "bj facts 1\n"

// A fileKey is what stat says of a file, and a hash of its bytes.
type fileKey struct {
	size, mtime, ctime int64 // times in nanoseconds
	inode              uint64
	rested             bool // stat alone can be believed
	hash               [sha256.Size]byte
}

func (k *fileKey) sameStat(o *fileKey) bool {
	return k.size == o.size && k.mtime == o.mtime && k.ctime == o.ctime && k.inode == o.inode
}

// rests reports whether a file that was read at a time cannot be written to
// any more without a change of its times. The clock of a file system ticks in
// some milliseconds, or in seconds if it stores whole seconds only.
func (k *fileKey) rests(read time.Time) bool {
	slack := 50 * time.Millisecond
	if k.mtime%1e9 == 0 && k.ctime%1e9 == 0 {
		slack = 2100 * time.Millisecond
	}
	return read.UnixNano()-max(k.mtime, k.ctime) > int64(slack)
}

type cacheEntry struct {
	key   fileKey
	doc   string
	loads []LoadStmt
	facts string
}

type cache struct {
	file    string
	key     string
	entries map[string]*cacheEntry
	changed bool
}

// openCache reads the cache of a workspace; whatever is wrong with it, it is
// empty.
func openCache(dir, key string, ws *Workspace) *cache {
	sum := sha256.Sum256([]byte(ws.Root))
	c := &cache{
		file:    filepath.Join(dir, "facts-"+hex.EncodeToString(sum[:8])),
		key:     fmt.Sprintf("%s\x00%s\x00%d", ws.Root, key, starlark.CompilerVersion),
		entries: map[string]*cacheEntry{},
	}
	data, err := os.ReadFile(c.file)
	if err == nil {
		c.entries, err = decodeCache(data, c.key)
	}
	if err != nil {
		c.entries, c.changed = map[string]*cacheEntry{}, true
	}
	return c
}

func encodeCache(entries map[string]*cacheEntry, key string) []byte {
	b := []byte(cacheMagic)
	str := func(s string) {
		b = binary.AppendUvarint(b, uint64(len(s)))
		b = append(b, s...)
	}
	num := func(n int64) { b = binary.AppendUvarint(b, uint64(n)) }
	str(key)
	num(int64(len(entries)))
	files := make([]string, 0, len(entries))
	for f := range entries {
		files = append(files, f)
	}
	slices.Sort(files)
	for _, f := range files {
		e := entries[f]
		str(f)
		num(e.key.size)
		num(e.key.mtime)
		num(e.key.ctime)
		num(int64(e.key.inode))
		rested := int64(0)
		if e.key.rested {
			rested = 1
		}
		num(rested)
		b = append(b, e.key.hash[:]...)
		str(e.doc)
		num(int64(len(e.loads)))
		for _, l := range e.loads {
			str(l.File)
			str(l.Label)
			num(int64(l.Pos.Line))
			num(int64(l.Pos.Col))
		}
		str(e.facts)
	}
	return withChecksum(b)
}

func withChecksum(b []byte) []byte {
	return binary.LittleEndian.AppendUint32(b, checksum(b))
}

func checksum(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

// decodeCache reads what encodeCache wrote under the same key.
func decodeCache(data []byte, key string) (map[string]*cacheEntry, error) {
	n := len(data) - 4
	if n < len(cacheMagic) || string(data[:len(cacheMagic)]) != cacheMagic ||
		checksum(data[:n]) != binary.LittleEndian.Uint32(data[n:]) {
		return nil, fmt.Errorf("reading cache: damaged")
	}
	// Nobody writes to data any more, so what is read can lie in it.
	in, bad := unsafe.String(unsafe.SliceData(data), n)[len(cacheMagic):], false
	num := func() int64 {
		var v uint64
		for shift := 0; shift < 64 && in != ""; shift += 7 {
			c := in[0]
			in = in[1:]
			v |= uint64(c&0x7f) << shift
			if c < 0x80 {
				return int64(v)
			}
		}
		bad, in = true, ""
		return 0
	}
	take := func(n int64) string {
		if n < 0 || n > int64(len(in)) {
			bad, in = true, ""
			return ""
		}
		s := in[:n]
		in = in[n:]
		return s
	}
	str := func() string { return take(num()) }
	if str() != key {
		return nil, fmt.Errorf("reading cache: written under another key")
	}
	count := num()
	if count < 0 || count > int64(len(in)) {
		return nil, fmt.Errorf("reading cache: damaged")
	}
	entries := make(map[string]*cacheEntry, count)
	pool := make([]cacheEntry, count)
	for i := range pool {
		e := &pool[i]
		file := str()
		e.key = fileKey{size: num(), mtime: num(), ctime: num(), inode: uint64(num()), rested: num() == 1}
		copy(e.key.hash[:], take(sha256.Size))
		e.doc = str()
		loads := num()
		if loads < 0 || loads > int64(len(in)) {
			bad = true
		}
		if bad {
			break
		}
		if loads > 0 {
			e.loads = make([]LoadStmt, loads)
		}
		for j := range e.loads {
			e.loads[j] = LoadStmt{File: str(), Label: str(), Pos: diag.Pos{File: file, Line: int(num()), Col: int(num())}}
		}
		e.facts = str()
		entries[file] = e
	}
	if bad || in != "" {
		return nil, fmt.Errorf("reading cache: damaged")
	}
	return entries, nil
}

// save replaces the file. A cache that cannot be written is no mistake.
func (c *cache) save() error {
	dir := filepath.Dir(c.file)
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return fmt.Errorf("saving cache: %w", err)
	}
	tmp, err := os.CreateTemp(dir, filepath.Base(c.file)+".*")
	if err != nil {
		return fmt.Errorf("saving cache: %w", err)
	}
	defer os.Remove(tmp.Name()) // fails once renamed
	_, err = tmp.Write(encodeCache(c.entries, c.key))
	if err2 := tmp.Close(); err == nil {
		err = err2
	}
	if err == nil {
		err = os.Rename(tmp.Name(), c.file)
	}
	if err != nil {
		return fmt.Errorf("saving cache: %w", err)
	}
	return nil
}

// revive gives a module what the cache knows of it, if its own bytes are as
// they were, and compiles it if not.
func (l *loader) revive(m *Module) error {
	read := time.Now()
	e := l.cache.entries[m.File]
	if !strings.HasPrefix(m.File, stdlibPrefix) {
		key, err := statFile(l.tree.Workspace.Path(m.File))
		if err == nil {
			if e != nil && e.key.rested && e.key.sameStat(&key) && l.reuse(m, e) {
				m.key = e.key
				return nil
			}
			key.rested = key.rests(read)
			m.key = key
		}
	}
	src, err := l.tree.read(m.File)
	if err != nil {
		return l.readAndCompile(m, l.env) // says so
	}
	m.src = src
	m.key.hash = sha256.Sum256(src)
	if e != nil && e.key.hash == m.key.hash && l.reuse(m, e) {
		return nil
	}
	return l.readAndCompile(m, l.env)
}

// reuse takes a module from the cache, if its facts can be read.
func (l *loader) reuse(m *Module, e *cacheEntry) bool {
	if l.opts.Revive != nil {
		state, ok := l.opts.Revive(m.File, e.facts)
		if !ok {
			return false
		}
		m.State = state
	}
	m.Doc, m.Loads, m.Facts, m.cached = e.doc, e.loads, e.facts, true
	return true
}

// refresh finds out which modules must be evaluated: those whose bytes
// changed, all that load them, and all that those load.
func (l *loader) refresh() []*Module {
	t := l.tree
	users := map[string][]*Module{}
	var todo []*Module
	stale := map[*Module]bool{}
	mark := func(m *Module) {
		if m != nil && !stale[m] {
			stale[m] = true
			todo = append(todo, m)
		}
	}
	for _, m := range t.Modules {
		for _, ld := range m.Loads {
			users[ld.File] = append(users[ld.File], m)
			if t.byFile[ld.File] == nil {
				mark(m)
			}
		}
		if !m.cached {
			mark(m)
		}
	}
	for len(todo) > 0 {
		m := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		for _, u := range users[m.File] {
			mark(u)
		}
	}
	up := make([]*Module, 0, len(stale))
	for m := range stale {
		up = append(up, m)
	}
	todo = append(todo, up...)
	for len(todo) > 0 {
		m := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		for _, ld := range m.Loads {
			mark(t.byFile[ld.File])
		}
	}
	var out []*Module
	for _, m := range t.Modules {
		if stale[m] {
			out = append(out, m)
		}
	}
	return out
}

// keep puts what was evaluated into the cache, and saves it if that changed it.
func (l *loader) keep() {
	c := l.cache
	entries := make(map[string]*cacheEntry, len(l.tree.Modules))
	for _, m := range l.tree.Modules {
		if m.Facts == "" || m.Broken || m.printed.Load() || len(m.Diags) > 0 {
			continue
		}
		old := c.entries[m.File]
		if m.cached && old != nil && old.key == m.key {
			entries[m.File] = old
			continue
		}
		c.changed = true
		entries[m.File] = &cacheEntry{m.key, m.Doc, m.Loads, m.Facts}
	}
	if len(entries) != len(c.entries) {
		c.changed = true
	}
	c.entries = entries
	if c.changed {
		_ = c.save() // the next load evaluates again
	}
}
