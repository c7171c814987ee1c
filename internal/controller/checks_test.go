package controller

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"routerd.dev/internal/rollout"
	"routerd.dev/internal/store"
)

// planned is a view with rollouts at a step of a plan.
func planned(step int, phase rollout.Phase, steps ...rollout.PlanStep) *rollout.View {
	return &rollout.View{Fleet: rollout.Fleet{ID: "f"}, Rollouts: []rollout.Rollout{{
		Intent: rollout.Intent{ID: "r", Kind: rollout.IntentSwitch}, Phase: phase,
		Plan: &rollout.Strategy{Name: "s", Waves: []rollout.Wave{{Steps: steps}}}, Cursor: rollout.Cursor{Step: step},
	}}}
}

func analysisOf(checks ...rollout.Check) rollout.PlanStep {
	return rollout.PlanStep{Analysis: &rollout.AnalysisStep{Checks: checks}}
}

func every(name string, d time.Duration) rollout.Check {
	high := 1.0
	return rollout.Check{Name: name, Every: rollout.Duration(d), Max: &high}
}

// asks runs an asker in a bubble of its own time.
func asks(t *testing.T, ask func(context.Context, rollout.Check) (float64, bool, error), test func(a *asker, s *script, ctx context.Context)) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{}
		c, err := New(s, Options{})
		if err != nil {
			t.Fatal(err)
		}
		c.ask = ask
		ctx, stop := context.WithCancel(t.Context())
		a := newAsker(c, &scriptTerm{s: s})
		defer a.wg.Wait()
		defer stop()
		test(a, s, ctx)
	})
}

// kept makes the script keep the newest record, which is returned and forgotten.
func kept(s *script) (take func() rollout.Checks) {
	var rec rollout.Checks
	s.put = func(_ context.Context, c rollout.Checks) error {
		s.set(func() { rec = c })
		return nil
	}
	return func() (c rollout.Checks) {
		s.set(func() { c, rec = rec, rollout.Checks{} })
		return c
	}
}

// TestChecksAreAskedOnTheirInterval, each by itself, and with each step anew.
func TestChecksAreAskedOnTheirInterval(t *testing.T) {
	asks(t, func(_ context.Context, c rollout.Check) (float64, bool, error) {
		switch c.Name {
		case "bad":
			return 2, true, nil
		case "away":
			return 0, false, errors.New("away")
		}
		return 0.5, true, nil
	}, func(a *asker, s *script, ctx context.Context) {
		take := kept(s)
		steps := []rollout.PlanStep{
			analysisOf(every("good", time.Second), every("bad", 0), every("away", time.Minute), every("hasty", 1)),
			{Bake: &rollout.BakeStep{Checks: []rollout.Check{every("good", time.Second)}}},
			{Pause: &rollout.PauseStep{Approval: true}},
		}
		a.see(ctx, planned(0, rollout.PhaseRunning, steps...))
		time.Sleep(30*time.Second + time.Millisecond)
		synctest.Wait()
		rec := take()
		good, bad, away, hasty := rec.Results["good"], rec.Results["bad"], rec.Results["away"], rec.Results["hasty"]
		if rec.Rollout != "r" || rec.Wave != 0 || rec.Step != 0 || good.Passed != 31 || *good.Value != 0.5 || bad.Failed != 4 || away.Errors != 1 || away.Error == "" || hasty.Passed != 31 {
			t.Errorf("after 30 s %+v", rec)
		}
		a.see(ctx, planned(0, rollout.PhaseRunning, steps...)) // nothing new
		a.see(ctx, planned(1, rollout.PhaseRunning, steps...))
		synctest.Wait()
		if rec = take(); rec.Step != 1 || len(rec.Results) != 1 || rec.Results["good"].Passed != 1 {
			t.Errorf("in the next step %+v", rec)
		}
		for _, v := range []*rollout.View{planned(2, rollout.PhaseRunning, steps...), planned(1, rollout.PhaseReturning, steps...), planned(9, rollout.PhaseRunning, steps...), {}} {
			a.see(ctx, v)
			synctest.Wait()
			take()
			time.Sleep(time.Minute)
			synctest.Wait()
			if rec := take(); rec.Rollout != "" || len(a.now) != 0 {
				t.Errorf("asked on: %+v", rec)
			}
		}
	})
}

// TestChecksContinueFromTheRecord of the controller before, at its pace.
func TestChecksContinueFromTheRecord(t *testing.T) {
	asks(t, func(context.Context, rollout.Check) (float64, bool, error) { return 2, true, nil },
		func(a *asker, s *script, ctx context.Context) {
			take := kept(s)
			v := planned(0, rollout.PhaseRunning, analysisOf(every("x", 10*time.Second)))
			v.Checks = map[string]rollout.Checks{"r": {Rollout: "r", Results: map[string]rollout.CheckResult{
				"x": {Asked: time.Now().Add(-4 * time.Second), Passed: 3, Failed: 1}, "gone": {Passed: 1},
			}}}
			a.see(ctx, v)
			time.Sleep(6*time.Second - time.Millisecond)
			synctest.Wait()
			if rec := take(); rec.Rollout != "" {
				t.Errorf("asked too early: %+v", rec)
			}
			time.Sleep(2 * time.Millisecond)
			synctest.Wait()
			rec := take()
			if x := rec.Results["x"]; x.Passed != 3 || x.Failed != 2 || len(rec.Results) != 1 {
				t.Errorf("record %+v", rec)
			}
			if was := v.Checks["r"].Results["x"]; was.Failed != 1 {
				t.Error("the view was changed")
			}
		})
}

// TestChecksAreBounded: so many at once, and none for longer than allowed.
func TestChecksAreBounded(t *testing.T) {
	var under, most atomic.Int64
	asks(t, func(ctx context.Context, _ rollout.Check) (float64, bool, error) {
		for n, was := under.Add(1), most.Load(); n > was && !most.CompareAndSwap(was, n); was = most.Load() {
		}
		defer under.Add(-1)
		<-ctx.Done()
		return 0, false, ctx.Err()
	}, func(a *asker, s *script, ctx context.Context) {
		take := kept(s)
		var checks []rollout.Check
		for i := range 3 * askAtOnce {
			checks = append(checks, every(fmt.Sprint("c", i), time.Hour))
		}
		a.see(ctx, planned(0, rollout.PhaseRunning, analysisOf(checks...)))
		time.Sleep(3*askAtMost + time.Millisecond)
		synctest.Wait()
		rec := take()
		if most.Load() != askAtOnce || len(rec.Results) != len(checks) {
			t.Errorf("%d at once, %d answered", most.Load(), len(rec.Results))
		}
		for name, r := range rec.Results {
			if r.Errors != 1 {
				t.Errorf("%s: %+v", name, r)
			}
		}
	})
}

// TestAnswersAreNotLost when they cannot be written at once, and nothing is
// written any more by a controller that was deposed.
func TestAnswersAreNotLost(t *testing.T) {
	asks(t, func(context.Context, rollout.Check) (float64, bool, error) { return 1, true, nil },
		func(a *asker, s *script, ctx context.Context) {
			tries := 0
			var got rollout.Checks
			s.put = func(_ context.Context, c rollout.Checks) error {
				s.mu.Lock()
				defer s.mu.Unlock()
				if tries++; tries < 4 {
					return store.ErrUnavailable
				}
				got = c
				return store.ErrDeposed
			}
			a.see(ctx, planned(0, rollout.PhaseRunning, analysisOf(every("x", time.Hour))))
			time.Sleep(4 * putAgain)
			synctest.Wait()
			s.set(func() {
				if tries != 4 || got.Results["x"].Passed != 1 {
					t.Errorf("%d tries, wrote %+v", tries, got)
				}
			})
			time.Sleep(10 * time.Hour)
			synctest.Wait()
			s.set(func() {
				if tries != 4 {
					t.Errorf("%d tries: it asks though it was deposed", tries)
				}
			})
		})
}

// TestHungCheckDelaysNoStep: neither the question nor writing down its answer.
func TestHungCheckDelaysNoStep(t *testing.T) {
	for name, hang := range map[string]func(*Controller, *script){
		"question": func(c *Controller, _ *script) {
			c.ask = func(ctx context.Context, _ rollout.Check) (float64, bool, error) {
				<-ctx.Done()
				return 0, false, ctx.Err()
			}
		},
		"write": func(c *Controller, s *script) {
			c.ask = func(context.Context, rollout.Check) (float64, bool, error) { return 0, true, nil }
			s.put = func(ctx context.Context, _ rollout.Checks) error { <-ctx.Done(); return ctx.Err() }
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var applied time.Time
				s := &script{}
				s.view = func() (*rollout.View, error) {
					v, err := busy() // a group is to be made
					v.Rollouts = planned(0, rollout.PhaseRunning, analysisOf(every("x", time.Second))).Rollouts
					return v, err
				}
				s.apply = func(rollout.Change) error {
					applied = time.Now()
					s.view = quiet(8)
					return nil
				}
				c, err := New(s, Options{})
				if err != nil {
					t.Fatal(err)
				}
				hang(c, s)
				ctx, stop := context.WithCancel(t.Context())
				began := time.Now()
				done := make(chan error)
				go func() { done <- c.Run(ctx) }()
				synctest.Wait()
				s.set(func() {
					if !applied.Equal(began) {
						t.Errorf("applied %v after the start", applied.Sub(began))
					}
				})
				stop()
				if err := <-done; err != nil {
					t.Error(err)
				}
				if d := time.Since(began); d > 0 {
					t.Errorf("it took %v to end", d)
				}
			})
		})
	}
}

// TestCollects about once an hour, but only with a history limit.
func TestCollects(t *testing.T) {
	runs, limit := 0, 0
	s := &script{}
	s.view = func() (*rollout.View, error) {
		v, err := quiet(5)()
		v.Fleet.Settings.HistoryLimit = limit
		return v, err
	}
	s.gc = func() (store.Collected, error) {
		runs++
		if runs%2 == 0 {
			return store.Collected{}, store.ErrBusy
		}
		return store.Collected{}, nil
	}
	run(t, s, Options{}, func(func()) {
		time.Sleep(10 * time.Hour)
		synctest.Wait()
		s.set(func() {
			if runs != 0 {
				t.Errorf("%d runs without a limit", runs)
			}
			limit = 20
		})
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		s.set(func() {
			if runs < 20 || runs > 24 {
				t.Errorf("%d runs in a day", runs)
			}
		})
	})
}
