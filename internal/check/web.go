package check

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"routerd.dev/internal/rollout"
)

// web asks any server.
type web rollout.WebCheck

// ask reads a number from a JSON answer, or what its status says.
func (c *web) ask(ctx context.Context) (float64, bool, error) {
	a, err := send(ctx, cmp.Or(c.Method, http.MethodGet), c.URL, c.Headers)
	if err != nil {
		return 0, false, err
	}
	good := a.status/100 == 2
	switch {
	case c.Field == "" && good:
		return 1, true, nil
	case c.Field == "":
		return 0, true, nil
	case !good:
		return 0, false, errors.New(a.told())
	}
	dec := json.NewDecoder(bytes.NewReader(a.body))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		return 0, false, fmt.Errorf("the answer is not JSON: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return 0, false, errors.New("the answer has more than one JSON value")
	}
	if v, err = field(v, c.Field); err != nil {
		return 0, false, err
	}
	return number(v, c.Field)
}

// field goes down a path such as a.b.0.c.
func field(v any, path string) (any, error) {
	at := "the answer"
	for name := range strings.SplitSeq(path, ".") {
		switch in := v.(type) {
		case map[string]any:
			next, ok := in[name]
			if !ok {
				return nil, fmt.Errorf("%s has no field %.60q", at, name)
			}
			v = next
		case []any:
			i, err := strconv.Atoi(name)
			if err != nil || i < 0 || i >= len(in) {
				return nil, fmt.Errorf("%s is a list of %d: it has no %.60q", at, len(in), name)
			}
			v = in[i]
		default:
			return nil, fmt.Errorf("%s is neither an object nor a list: it has no %.60q", at, name)
		}
		at = name
	}
	return v, nil
}

// number takes numbers, also in text as Prometheus writes them, and booleans;
// null is no value.
func number(v any, path string) (float64, bool, error) {
	switch v := v.(type) {
	case nil:
		return 0, false, nil
	case bool:
		if v {
			return 1, true, nil
		}
		return 0, true, nil
	case json.Number:
		return parse(v.String(), path)
	case string:
		return parse(v, path)
	}
	return 0, false, fmt.Errorf("%s is not a number", path)
}

// parse reads a number; what is too large for one is infinite.
func parse(s, what string) (float64, bool, error) {
	f, err := strconv.ParseFloat(s, 64)
	if err != nil && !errors.Is(err, strconv.ErrRange) {
		return 0, false, fmt.Errorf("%s is %.60q, which is not a number", what, s)
	}
	return f, true, nil
}
