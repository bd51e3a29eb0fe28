package builtins

import (
	"fmt"
	"net/netip"
	"reflect"
	"testing"

	"bj/fleet"
)

// fill gives every field of a value, down to the last, one that is not zero,
// so that a field that the codec forgets shows.
func fill(v reflect.Value, n *int) {
	*n++
	switch p := v.Addr().Interface().(type) {
	case *netip.Addr:
		*p = netip.MustParseAddr(fmt.Sprintf("10.0.0.%d", *n%200+1))
		return
	case *netip.Prefix:
		*p = netip.MustParsePrefix(fmt.Sprintf("fd00:%x::/%d", *n%200+1, *n%20+32))
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i), n)
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), n)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		fill(v.Index(0), n)
		fill(v.Index(1), n)
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(reflect.ValueOf("KEY"), reflect.ValueOf("value"))
	case reflect.String:
		v.SetString(fmt.Sprintf("text %d", *n))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(int64(*n))
	case reflect.Uint16, reflect.Uint32:
		v.SetUint(uint64(*n))
	default:
		panic(v.Type())
	}
}

func TestCodecRoundTrip(t *testing.T) {
	var n int
	s, r := new(fleet.Service), new(fleet.Recipe)
	fill(reflect.ValueOf(s).Elem(), &n)
	s.Known = "" // never a module's own
	fill(reflect.ValueOf(r).Elem(), &n)
	r.Strategy[0].Step.Run[1].Text = r.Strategy[0].Step.Run[0].Text
	for _, f := range []*facts{
		{},
		{services: []*fleet.Service{s, {}}, recipes: []*fleet.Recipe{r, {Tags: []string{}, Estimate: nil}}},
	} {
		text := encodeFacts("p/x.star", f)
		back, ok := decodeFacts("p/x.star", text)
		if !ok || !reflect.DeepEqual(back, f) {
			t.Errorf("facts differ after a round trip (%v):\n%+v\n%+v", ok, back, f)
		}
		for i := range len(text) {
			if _, ok := decodeFacts("p/x.star", text[:i]); ok {
				t.Errorf("cut at %d of %d, and not noticed", i, len(text))
			}
		}
	}
}

func FuzzCodec(f *testing.F) {
	var n int
	r := new(fleet.Recipe)
	fill(reflect.ValueOf(r).Elem(), &n)
	f.Add(encodeFacts("f", &facts{recipes: []*fleet.Recipe{r}}))
	f.Fuzz(func(t *testing.T, in string) {
		got, ok := decodeFacts("f", in)
		if !ok {
			return
		}
		again, ok := decodeFacts("f", encodeFacts("f", got))
		if !ok || !reflect.DeepEqual(again, got) {
			t.Errorf("%+v becomes %+v", got, again)
		}
	})
}
