package lang

import (
	"reflect"
	"testing"

	"bj/lang/diag"
)

func sampleEntries() map[string]*cacheEntry {
	return map[string]*cacheEntry{
		"p/x.star": {
			key:   fileKey{size: 5, mtime: -1, ctime: 1 << 60, inode: 1 << 63, rested: true, hash: [32]byte{1, 31: 2}},
			doc:   "words",
			loads: []LoadStmt{{File: "lib/y.star", Label: "//lib:y.star", Pos: diag.Pos{File: "p/x.star", Line: 3, Col: 6}}},
			facts: "\x00facts\xff",
		},
		"lib/y.star": {},
	}
}

func TestCacheRoundTrip(t *testing.T) {
	want := sampleEntries()
	data := encodeCache(want, "key")
	got, err := decodeCache(data, "key")
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := decodeCache(data, "other"); err == nil {
		t.Error("read under another key")
	}
	for i := range data {
		bad := append([]byte(nil), data...)
		bad[i] ^= 0x10
		if _, err := decodeCache(bad, "key"); err == nil {
			t.Errorf("byte %d changed, and not noticed", i)
		}
		if _, err := decodeCache(data[:i], "key"); err == nil {
			t.Errorf("cut at %d, and not noticed", i)
		}
	}
}

func FuzzCacheFile(f *testing.F) {
	f.Add(encodeCache(sampleEntries(), "key"))
	f.Fuzz(func(t *testing.T, data []byte) {
		entries, err := decodeCache(data, "key")
		if err != nil {
			// The checksum guards the rest: put it right and try again.
			if len(data) < 4 {
				return
			}
			if entries, err = decodeCache(withChecksum(data[:len(data)-4]), "key"); err != nil {
				return
			}
		}
		again, err := decodeCache(encodeCache(entries, "key"), "key")
		if err != nil || !reflect.DeepEqual(again, entries) {
			t.Errorf("%+v becomes %+v, %v", entries, again, err)
		}
	})
}
