package yamlfile

import (
	"fmt"
	"math/big"
	"strconv"
	"strings"
)

// maxExponent bounds the powers of ten a number may have, so that no short
// text stands for a long one.
const maxExponent = 400

// maxDigits bounds what is written of a number: putting it in another base
// takes the square of it.
const maxDigits = 400

// plainKind tells what a plain scalar is by the YAML 1.2 core schema. Its last
// result is the text of the Node: true and false in lower case.
func plainKind(s string) (Kind, string) {
	switch s {
	case "", "~", "null", "Null", "NULL":
		return Null, ""
	case "true", "True", "TRUE":
		return Bool, "true"
	case "false", "False", "FALSE":
		return Bool, "false"
	}
	if isNumber(s) {
		return Number, s
	}
	return String, s
}

func isNumber(s string) bool {
	switch {
	case strings.HasPrefix(s, "0x"):
		return len(s) > 2 && strings.Trim(s[2:], "0123456789abcdefABCDEF") == ""
	case strings.HasPrefix(s, "0o"):
		return len(s) > 2 && strings.Trim(s[2:], "01234567") == ""
	}
	rest := strings.TrimLeft(s, "+-")
	if len(s)-len(rest) > 1 {
		return false
	}
	switch rest {
	case ".inf", ".Inf", ".INF":
		return true
	case ".nan", ".NaN", ".NAN":
		return rest == s
	}
	mantissa, exponent, hasExponent := cutExponent(rest)
	if hasExponent {
		digits := strings.TrimLeft(exponent, "+-")
		if len(exponent)-len(digits) > 1 || !allDigits(digits) {
			return false
		}
	}
	whole, fraction, _ := strings.Cut(mantissa, ".")
	return allDigits(whole + fraction)
}

func allDigits(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }

func cutExponent(s string) (mantissa, exponent string, ok bool) {
	if i := strings.IndexAny(s, "eE"); i >= 0 {
		return s[:i], s[i+1:], true
	}
	return s, "", false
}

// canonicalNumber gives the one form of a number: its significant digits,
// without an exponent where it is short so.
func canonicalNumber(s string) (string, error) {
	if len(s) > maxDigits {
		return "", fmt.Errorf("%.40q… is a number of more than %d characters", s, maxDigits)
	}
	if strings.HasPrefix(s, "0x") || strings.HasPrefix(s, "0o") {
		v, ok := new(big.Int).SetString(s, 0)
		if !ok {
			return "", fmt.Errorf("%.40q is not a number", s)
		}
		s = v.String()
	}
	negative := strings.HasPrefix(s, "-")
	mantissa, exponent, hasExponent := cutExponent(strings.TrimLeft(s, "+-"))
	whole, fraction, _ := strings.Cut(mantissa, ".")
	if !allDigits(whole + fraction) {
		return "", fmt.Errorf("%.40q cannot be said in JSON", s)
	}
	exp := 0
	if hasExponent {
		v, err := strconv.Atoi(exponent)
		if err != nil || v > maxExponent || v < -maxExponent {
			return "", fmt.Errorf("%.40q is out of range", s)
		}
		exp = v
	}
	digits := strings.TrimLeft(whole+fraction, "0")
	exp -= len(fraction)
	trimmed := strings.TrimRight(digits, "0")
	exp += len(digits) - len(trimmed)
	if trimmed == "" {
		return "0", nil
	}
	out := placeDigits(trimmed, exp)
	if negative {
		out = "-" + out
	}
	return out, nil
}

// placeDigits writes digits × 10^exp, digits without zeros at either end.
func placeDigits(digits string, exp int) string {
	point := len(digits) + exp // where the decimal point stands, counted from the first digit
	switch {
	case exp >= 0 && point <= 21:
		return digits + strings.Repeat("0", exp)
	case exp < 0 && point > 0:
		return digits[:point] + "." + digits[point:]
	case exp < 0 && point > -6:
		return "0." + strings.Repeat("0", -point) + digits
	}
	if len(digits) > 1 {
		digits = digits[:1] + "." + digits[1:]
	}
	return digits + "e" + strconv.Itoa(point-1)
}
