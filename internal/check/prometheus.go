package check

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"routerd.dev/internal/rollout"
)

// prometheus asks a Prometheus, or what answers as one.
type prometheus rollout.PrometheusCheck

// A promAnswer is what the HTTP API of Prometheus answers to an instant query
// (prometheus.io/docs/prometheus/latest/querying/api/).
type promAnswer struct {
	Status    string `json:"status"`
	ErrorType string `json:"errorType"`
	Error     string `json:"error"`
	Data      struct {
		Type   string          `json:"resultType"`
		Result json.RawMessage `json:"result"`
	} `json:"data"`
}

// A promSample is a time and a value, which is text.
type promSample [2]any

// ask sends an instant query, whose result is one number.
func (c *prometheus) ask(ctx context.Context) (float64, bool, error) {
	u, err := url.Parse(c.Address)
	if err != nil {
		return 0, false, fmt.Errorf("the address is no URL: %w", err)
	}
	u.Path = strings.TrimSuffix(u.Path, "/") + "/api/v1/query"
	u.RawPath = ""
	q := u.Query()
	q.Set("query", c.Query)
	u.RawQuery = q.Encode()
	a, err := send(ctx, http.MethodGet, u.String(), c.Headers)
	if err != nil {
		return 0, false, err
	}
	var p promAnswer
	if err := json.Unmarshal(a.body, &p); err != nil {
		if a.status/100 != 2 {
			return 0, false, errors.New(a.told())
		}
		return 0, false, fmt.Errorf("the answer is not Prometheus's: %w", err)
	}
	switch {
	case p.Status == "error":
		return 0, false, fmt.Errorf("%.40s: %.500s", p.ErrorType, p.Error)
	case a.status/100 != 2 || p.Status != "success":
		return 0, false, errors.New(a.told())
	}
	return p.value()
}

// value takes a scalar, or the only sample of a vector.
func (p *promAnswer) value() (float64, bool, error) {
	switch p.Data.Type {
	case "scalar":
		var s promSample
		if err := json.Unmarshal(p.Data.Result, &s); err != nil {
			return 0, false, fmt.Errorf("the answer is not Prometheus's: %w", err)
		}
		return s.value()
	case "vector":
		var all []struct {
			Value promSample `json:"value"`
		}
		if err := json.Unmarshal(p.Data.Result, &all); err != nil {
			return 0, false, fmt.Errorf("the answer is not Prometheus's: %w", err)
		}
		switch len(all) {
		case 0:
			return 0, false, nil
		case 1:
			return all[0].Value.value()
		}
		return 0, false, fmt.Errorf("the query gives %d samples: write one that gives a single one, with sum() or max() for instance", len(all))
	}
	return 0, false, fmt.Errorf("the query gives a %.40s: want a vector with one sample, or a scalar", p.Data.Type)
}

func (s promSample) value() (float64, bool, error) {
	text, ok := s[1].(string)
	if !ok {
		return 0, false, errors.New("the answer is not Prometheus's: a sample's value is not text")
	}
	return parse(text, "the sample")
}
