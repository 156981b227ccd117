"""Slow, obvious versions of the feature kernels: lists, sums over lists, and the definitions.

An instrument's past is kept whole. A short window is the last W entries of a list; a decaying
window is a sum over all entries of its session, each weighted by its age. Only the slow scales are
running numbers, because that is how they are defined.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from detector.features import FeatureSpec
from detector.ticks import UNDEFINED_PRICE, Quality

OUTLIER = 32.0
NS = 1e-9


class Scale:
    """Slow mean; one observation counts for at most 32 times the mean unless `capped` is false."""

    def __init__(self, most: int, *, capped: bool = True) -> None:
        self.most, self.capped, self.mean, self.count = most, capped, 0.0, 0

    def add(self, x: float) -> None:
        """Observe x."""
        self.count = min(self.count + 1, self.most)
        if self.capped and self.mean > 0:
            x = min(x, OUTLIER * self.mean)
        self.mean += (x - self.mean) / self.count


def slog(x: float) -> float:
    """Kernels compress ratios logarithmically, up to 1e30."""
    return math.copysign(math.log1p(min(abs(x), 1e30)), x)


def log_ratio(a: float, b: float) -> float:
    """log((a + f) / (b + f)) with f = 1 % of b, within the same bound."""
    return min(math.log((a / b + 0.01) / 1.01), math.log(1e30))


def log_rate(found: float, expected: float) -> float:
    """How much more than expected, both counted from one on."""
    return math.log((found + 1) / (expected + 1))


def ratio(a: float, b: float) -> float:
    """Without a scale there is no feature."""
    return a / b if b > 0 else 0.0


def mean(xs: list[float]) -> float:
    """Arithmetic mean."""
    return math.fsum(xs) / len(xs)


def sd(xs: list[float]) -> float:
    """Population standard deviation."""
    m = mean(xs)
    return math.sqrt(mean([(x - m) ** 2 for x in xs]))


@dataclass
class Past:
    """One instrument."""

    most: int
    events: int = 0
    last: int = 0
    began: int = 0
    far_late: int = 0
    rows: list[dict[str, float]] = field(default_factory=list)  # of the session
    now: dict[str, Any] = field(default_factory=dict)  # what carries over from tick to tick

    def __post_init__(self) -> None:
        capped = ("spread", "move", "r2", "depth", "dt", "trade", "flow", "book_wait")
        plain = ("moving", "waiting", "trades", "adds", "cancels", "changes", "log_size",
                 "book_waiting", "books")  # fmt: skip
        self.scale = {n: Scale(self.most) for n in capped}
        self.scale |= {n: Scale(self.most, capped=False) for n in plain}
        self.log_variance = 0.0


class TickOracle:
    """One input partition, without a cap on instruments."""

    def __init__(self, spec: FeatureSpec) -> None:
        self.spec = spec
        self.clock: int | None = None
        self.candidate: int | None = None
        self.previous: int | None = None
        self.past: dict[int, Past] = {}
        self.hashes: dict[int, list[bytes]] = {}

    def plausible(self, ts: int) -> bool:
        """Whether a time fits the partition's clock, or is confirmed by the one before."""
        jump = self.spec.jump_s * 1e9
        if self.clock is None or abs(ts - self.clock) <= jump:
            self.clock = max(ts, self.clock or ts)
        elif self.previous is not None and abs(ts - self.previous) <= jump:
            self.clock, self.previous = max(ts, self.previous), self.clock
        elif self.candidate is not None and abs(ts - self.candidate) <= jump:
            self.clock, self.previous = ts, self.clock
        else:
            self.candidate = ts
            return False
        self.candidate = None
        return True

    def is_ready(self, p: Past) -> bool:
        """Enough events, a full short window, and enough time since the windows began."""
        enough = p.events >= self.spec.warmup and len(p.rows) >= self.spec.short_window
        return enough and p.last - p.began >= round(self.spec.warmup_s * 1e9)

    def arrive(self, key: int, ts: int) -> tuple[Past, float, bool, bool]:
        """The instrument, seconds waited, whether its windows begin anew, whether it is late."""
        p = self.past.setdefault(key, Past(self.spec.slow_window))
        if p.events == 0:
            p.last = p.began = ts
            return p, 0.0, True, False
        wait = (ts - p.last) * NS
        gap = self.spec.gap_s
        p.far_late = p.far_late + 1 if gap > 0 and wait < -gap else 0
        if abs(wait) > self.spec.jump_s or p.far_late >= 2:
            p = self.past[key] = Past(self.spec.slow_window)
            p.last = p.began = ts
            return p, 0.0, True, False
        if gap > 0 and wait > gap:
            p.last, p.began, p.rows, p.now = ts, ts, [], {}
            return p, 0.0, True, False
        if wait < 0:
            return p, 0.0, False, True
        p.last = ts
        return p, wait, False, False

    def update(self, tick: Any) -> tuple[list[float], bool, int]:
        """Features in the order of the spec, ready, quality."""
        zeros = [0.0] * len(self.spec.names)
        ts = int(tick["ts_event"])
        if ts == 0 or ts > 2**63 - 1:
            return zeros, False, Quality.NO_TIME
        if not self.plausible(ts):
            return zeros, False, Quality.IMPLAUSIBLE_TIME
        key = (int(tick["publisher_id"]) << 32) | int(tick["instrument_id"])
        seen = self.hashes.setdefault(key, [])
        if tick["sequence"] != 0:
            known = self.past.get(key)
            if known and known.events and ts <= known.last and tick.tobytes() in seen[-64:]:
                return zeros, False, Quality.REPEATED
            seen.append(tick.tobytes())
        p, wait, fresh, late = self.arrive(key, ts)
        p.events += 1
        values, quality = self.features(p, tick, wait, fresh)
        ready = self.is_ready(p)
        return values, ready, quality | (Quality.LATE if late else 0)

    def book(self, now: dict[str, Any], tick: Any, trade: bool) -> tuple[dict[str, Any], int]:
        """Book after the tick (price or None, size) and what is unusual about the record."""
        quality = 0
        bid, ask = int(tick["bid_px"]), int(tick["ask_px"])
        price = int(tick["price"])
        if any(v <= 0 for v in (bid, ask, price)):
            quality |= Quality.NONPOSITIVE_PRICE
        new = {
            "bid": None if bid == UNDEFINED_PRICE else bid,
            "ask": None if ask == UNDEFINED_PRICE else ask,
            "bid_sz": 0 if bid == UNDEFINED_PRICE else int(tick["bid_sz"]),
            "ask_sz": 0 if ask == UNDEFINED_PRICE else int(tick["ask_sz"]),
        }
        empty = [s for s in ("bid", "ask") if new[s] is not None and new[f"{s}_sz"] == 0]
        if empty or (trade and tick["size"] == 0):
            quality |= Quality.ZERO_SIZE
        if trade and new["bid"] is None and new["ask"] is None:
            none = {"bid": None, "ask": None, "bid_sz": 0, "ask_sz": 0}
            return now.get("book", none), quality
        if new["bid"] is None or new["ask"] is None:
            quality |= Quality.ONE_SIDED
        elif new["bid"] > new["ask"]:
            quality |= Quality.CROSSED
        elif new["bid"] == new["ask"]:
            quality |= Quality.LOCKED
        if new["bid_sz"] == 0 and new["ask_sz"] == 0:
            new["bid_sz"] = int(new["bid"] is not None)
            new["ask_sz"] = int(new["ask"] is not None)
        return new, quality

    def features(  # noqa: PLR0912 - one tick from the record to the scales, in order
        self, p: Past, tick: Any, wait: float, fresh: bool
    ) -> tuple[list[float], int]:
        """Take a tick into the past; its features and what is unusual about it."""
        now, scale = p.now, p.scale
        action, side = chr(tick["action"]), chr(tick["side"])
        trade = action == "T"
        old = now.get("book", {"bid": None, "ask": None, "bid_sz": 0, "ask_sz": 0})
        book, quality = self.book(now, tick, trade)
        now["book"] = book
        two_sided = book["bid"] is not None and book["ask"] is not None
        row: dict[str, float] = {"t": p.last}
        row["dt"] = scale["dt"].mean * scale["waiting"].mean if fresh else wait

        # book changes, order-flow imbalance, flips
        flow = {}
        for s, better in (("bid", 1), ("ask", -1)):
            up = down = flip = 0
            e = 0.0
            if book[s] is not None and old[s] is not None:
                change = (book[s] - old[s]) * better  # > 0: the price improved
                e = (book[f"{s}_sz"] if change >= 0 else 0) - (old[f"{s}_sz"] if change <= 0 else 0)
                if change:
                    direction = 1 if book[s] > old[s] else -1
                    up, down = int(direction > 0), int(direction < 0)
                    flip = int(now.get(f"{s}_direction") == -direction)
                    now[f"{s}_direction"] = direction
            flow[s] = float(e)
            row |= {f"{s}_up": up, f"{s}_down": down, f"{s}_flip": flip, f"{s}_move": up - down}
        row["ofi"] = flow["bid"] - flow["ask"]
        row["flips"] = row["bid_flip"] + row["ask_flip"]

        changes = row["changes"] = abs(row["bid_move"]) + abs(row["ask_move"])

        # the book as a whole
        now.setdefault("book_since", p.last)
        now.setdefault("book_events", 0)
        row["has_book"] = int(book["bid"] is not None or book["ask"] is not None)
        row["stood"], row["stood_events"] = (p.last - now["book_since"]) * NS, now["book_events"]
        books = now.setdefault("books", [])
        changed = bool(books) and book != books[-1]
        row["undo"] = int(changed and len(books) > 1 and book == books[-2])
        books.append(book)
        if changed:
            now["book_since"], now["book_events"] = p.last, 0
        elif len(books) > 1:
            now["book_events"] += 1
        row["changed"] = int(changed)
        row["left"] = int(len(books) > 1 and not changed and row["has_book"])
        row["age"], row["age_events"] = (p.last - now["book_since"]) * NS, now["book_events"]

        # adds and cancels
        adds = {"bid": 0, "ask": 0}
        cancelled = {"bid": 0.0, "ask": 0.0}
        cancels = {"bid": 0, "ask": 0}
        if action in "AC" and side in "AB":
            s = "bid" if side == "B" else "ask"
            if action == "A":
                adds[s] = 1
            else:
                cancels[s], cancelled[s] = 1, float(tick["size"])
        elif action in "ACMN":
            adds = {s: int(flow[s] > 0) for s in flow}
            cancels = {s: int(flow[s] < 0) for s in flow}
            cancelled = {s: max(-flow[s], 0.0) for s in flow}
        row |= {"bid_add": adds["bid"], "ask_add": adds["ask"], "add": max(adds.values())}
        row |= {"bid_cancel": cancels["bid"], "ask_cancel": cancels["ask"]}
        row["cancelled"] = sum(cancelled.values())

        # trades
        ref_before, mids_before = now.get("ref"), now.get("mids", False)
        row |= {"trade": int(trade), "buy": 0, "sell": 0, "volume": 0.0, "signed": 0.0}
        row |= {"effective": 0.0, "same": 0, "pingpong": 0}
        row |= {"buy_half": 0.0, "sell_half": 0.0, "sign": 0}
        size_z = 0.0
        if trade:
            price = None if tick["price"] == UNDEFINED_PRICE else int(tick["price"])
            sign = {"B": 1, "A": -1}.get(side, 0)
            last = now.get("trade")
            if sign == 0 and price is not None:
                if mids_before and price != ref_before:
                    sign = 1 if price > ref_before else -1
                elif last is not None:
                    sign = now["sign"] if price == last else (1 if price > last else -1)
            volume = float(tick["size"]) or 1.0
            row |= {"buy": int(sign > 0), "sell": int(sign < 0), "volume": volume}
            row |= {"buy_half": (1 + sign) / 2, "sell_half": (1 - sign) / 2}
            row |= {"signed": sign * volume, "sign": sign}
            earlier = [r for r in p.rows if r["trade"]]
            if earlier and earlier[-1]["volume"] == volume:
                row |= {"same": 1, "pingpong": int(earlier[-1]["sign"] * sign < 0)}
            log_size = math.log(volume)
            if scale["trade"].count >= 8:
                size_z = (log_size - scale["log_size"].mean) / (math.sqrt(p.log_variance) + 0.1)
            if price is not None:
                if mids_before:
                    row["effective"] = 2.0 * sign * (price - ref_before)
                now["trade"], now["sign"] = price, sign

        # reference price
        ref, comparable = ref_before, ref_before is not None
        if two_sided:
            ref = 0.5 * (float(book["bid"]) + float(book["ask"]))
            comparable = comparable and mids_before
            now["mids"] = True
            now["spread"] = float(book["ask"]) - float(book["bid"])
        elif trade and not mids_before and tick["price"] != UNDEFINED_PRICE:
            ref = float(tick["price"])
        now["ref"] = ref
        row["move"] = ref - ref_before if comparable else 0.0
        row["r"] = math.log(ref / ref_before) if comparable and ref > 0 and ref_before > 0 else 0.0
        row["bipower"] = abs(row["r"]) * abs(p.rows[-1]["r"] if p.rows else 0.0)
        row["ref"] = ref or 0.0
        spread = row["spread"] = now.get("spread", 0.0)
        row["crossed"] = int(two_sided and spread <= 0)
        bid_sz, ask_sz = row["bid_sz"], row["ask_sz"] = float(book["bid_sz"]), float(book["ask_sz"])
        row["imbalance"] = ratio(bid_sz - ask_sz, bid_sz + ask_sz)
        p.rows.append(row)

        values = self.values(p, row, size_z)
        if not two_sided:
            values["microprice_deviation"] = values["crossed_depth_tick"] = 0.0

        # slow scales, after the features
        if two_sided and spread > 0:
            scale["spread"].add(spread)
        if two_sided and bid_sz + ask_sz > 0:
            scale["depth"].add((bid_sz + ask_sz) / 2)
        if comparable:
            if row["move"] != 0:
                scale["move"].add(abs(row["move"]))
            if row["r"] ** 2 > 0:
                scale["r2"].add(row["r"] ** 2)
            scale["moving"].add(float(row["r"] ** 2 > 0))
        if not fresh:
            if wait > 0:
                scale["dt"].add(wait)
            scale["waiting"].add(float(wait > 0))
        if changed:
            if row["stood"] > 0:
                scale["book_wait"].add(row["stood"])
            scale["book_waiting"].add(float(row["stood"] > 0))
        scale["trades"].add(float(trade))
        scale["adds"].add(float(sum(adds.values())))
        scale["cancels"].add(float(sum(cancels.values())))
        scale["changes"].add(float(changes))
        scale["books"].add(float(changed))
        scale["flow"].add(abs(row["ofi"]))
        if trade:
            scale["trade"].add(row["volume"])
            deviation = math.log(row["volume"]) - scale["log_size"].mean
            scale["log_size"].add(math.log(row["volume"]))
            fade = 1 / scale["trade"].count
            p.log_variance = (1 - fade) * (p.log_variance + fade * deviation**2)
        return [values[n] for n in self.spec.names], quality

    def values(self, p: Past, row: dict[str, float], size_z: float) -> dict[str, float]:
        """Features by name, from the session's rows and the scales before the last of them."""
        spec, scale = self.spec, p.scale
        w, recent = p.rows[-spec.short_window :], p.rows[-spec.recent_window :]
        n, m = len(w), len(recent)
        W, V = f"{spec.short_window}ev", f"{spec.recent_window}ev"
        lives = {f"{1000 * h:g}ms" if h < 1 else f"{h:g}s": h for h in spec.half_lives_s}
        fast, first, second, slowest = lives

        def total(name: str) -> float:
            return math.fsum(r[name] for r in w)

        def lately(name: str) -> float:
            return math.fsum(r[name] for r in recent)

        def most(name: str) -> float:
            return max(r[name] for r in w)

        ages = [(row["t"] - r["t"]) * NS for r in p.rows]
        weights = {h: [2 ** (-age / life) for age in ages] for h, life in lives.items()}

        def decayed(value: Any, h: str) -> float:
            return math.fsum(
                weight * value(r) for weight, r in zip(weights[h], p.rows, strict=True)
            )

        price = scale["spread"].mean if scale["spread"].count else scale["move"].mean
        variance = scale["r2"].mean * scale["moving"].mean
        volatility = math.sqrt(variance)
        depth, trade = scale["depth"].mean, scale["trade"].mean
        wait = scale["dt"].mean * scale["waiting"].mean
        book_wait = scale["book_wait"].mean * scale["book_waiting"].mean
        expected = {h: ratio(s / math.log(2), wait) for h, s in lives.items()}
        v: dict[str, float] = {}

        # what moved
        v["return_tick"] = slog(ratio(row["r"], volatility))
        v[f"return_{W}"] = slog(ratio(total("r"), volatility * math.sqrt(n)))
        path = math.fsum(abs(r["move"]) for r in w)
        v[f"path_efficiency_{W}"] = ratio(abs(total("move")), path)
        v[f"range_{W}"] = slog(ratio(most("ref") - min(r["ref"] for r in w), price))
        v[f"mean_deviation_{W}"] = slog(ratio(row["ref"] - mean([r["ref"] for r in w]), price))
        realised = math.fsum(r["r"] ** 2 for r in w)
        bipower = math.pi / 2 * total("bipower")
        v[f"realised_variance_{W}"] = slog(ratio(realised / n, variance))
        v[f"bipower_variance_{W}"] = slog(ratio(bipower / n, variance))
        v[f"jump_ratio_{W}"] = max(1 - bipower / realised, 0.0) if realised > 0 else 0.0

        # spread and book
        v["quoted_spread"] = slog(ratio(row["spread"], price))
        v["relative_spread"] = slog(ratio(ratio(row["spread"], row["ref"]), volatility))
        v[f"spread_mean_{W}"] = slog(ratio(total("spread") / n, price))
        v[f"spread_min_{W}"] = slog(ratio(min(r["spread"] for r in w), price))
        v[f"spread_max_{W}"] = slog(ratio(most("spread"), price))
        v["effective_spread_tick"] = slog(ratio(row["effective"], price))
        v[f"effective_spread_{W}"] = slog(ratio(total("effective") / max(total("trade"), 1), price))
        v["crossed_locked_tick"] = row["crossed"]
        v[f"crossed_locked_{W}"] = total("crossed") / n
        v["crossed_events"] = slog(self.last_in_a_row(p.rows, "crossed"))
        v["crossed_depth_tick"] = slog(ratio(min(row["spread"], 0.0), price))
        imbalances = [r["imbalance"] for r in w]
        v["queue_imbalance"] = row["imbalance"]
        v[f"queue_imbalance_mean_{W}"] = mean(imbalances)
        v[f"queue_imbalance_sd_{W}"] = sd(imbalances)
        v["microprice_deviation"] = slog(ratio(row["spread"] / 2 * row["imbalance"], price))
        for s in ("bid", "ask"):
            sizes = [r[f"{s}_sz"] for r in w]
            v[f"{s}_size"] = slog(ratio(row[f"{s}_sz"], depth))
            v[f"{s}_size_max_{W}"] = slog(ratio(max(sizes), depth))
            v[f"{s}_changes_{W}"] = (total(f"{s}_up") + total(f"{s}_down")) / n
            v[f"{s}_flips_{W}"] = total(f"{s}_flip") / n
            v[f"{s}_cancel_share_{W}"] = total(f"{s}_cancel") / n
            v[f"{s}_cancel_share_{V}"] = lately(f"{s}_cancel") / m
            better = 1 if s == "bid" else -1
            v[f"{s}_improvement_{W}"] = better * total(f"{s}_move") / n
            v[f"{s}_improvement_{V}"] = better * lately(f"{s}_move") / m
            run = 0
            for r in p.rows:
                step = int(r[f"{s}_move"])
                if step:
                    run = run + step if run * step > 0 else step
            v[f"{s}_run"] = slog(run)
        has_book = row["has_book"]
        v["book_age"] = slog(ratio(row["age"], wait)) * has_book
        v["book_age_events"] = slog(row["age_events"]) * has_book
        v["book_wait"] = log_ratio(row["stood"], book_wait) * has_book if book_wait > 0 else 0.0
        v["book_wait_events"] = slog(row["stood_events"]) * has_book
        v["frozen_book_trades"] = 0.0
        if row["trade"] and has_book:
            frozen = self.frozen_trades(p.rows)
            changed_per_s = ratio(scale["books"].mean, wait)
            v["frozen_book_trades"] = frozen * math.log(1 + row["age"] * changed_per_s)
        v[f"undo_share_{W}"] = total("undo") / n

        # order flow
        v["order_flow_imbalance_tick"] = slog(ratio(row["ofi"], depth))
        v[f"order_flow_imbalance_{W}"] = slog(ratio(total("ofi") / math.sqrt(n), depth))
        v[f"order_flow_{W}"] = slog(ratio(math.fsum(abs(r["ofi"]) for r in w) / n, depth))
        v[f"add_imbalance_{V}"] = (lately("bid_add") - lately("ask_add")) / max(lately("add"), 1)

        # trades
        trades = total("trade")
        v[f"trade_share_{W}"] = trades / n
        v[f"trade_sign_imbalance_{W}"] = (total("buy") - total("sell")) / max(trades, 1)
        v[f"signed_volume_imbalance_{W}"] = ratio(total("signed"), total("volume"))
        v[f"volume_{W}"] = slog(ratio(total("volume"), trade))
        v[f"largest_trade_{W}"] = slog(ratio(most("volume"), trade))
        v["trade_size_tick"] = slog(ratio(row["volume"], trade))
        v["trade_size_z"] = slog(size_z)
        v |= self.last_trades(p, trade, wait)
        v["wash_run"] = 0.0
        if row["trade"]:
            v["wash_run"] = slog(self.last_in_a_row([r for r in p.rows if r["trade"]], "pingpong"))
        for h in (second, slowest):
            v[f"pingpong_{h}"] = slog(decayed(lambda x: x["pingpong"], h))

        # arrivals
        v["inter_arrival"] = v[f"inter_arrival_mean_{W}"] = 0.0
        waits = [r["dt"] for r in w]
        gap = 0.0
        if wait > 0:
            v["inter_arrival"] = log_ratio(row["dt"], wait)
            v[f"inter_arrival_mean_{W}"] = log_ratio(mean(waits), wait)
            gap = max(log_ratio(max(r["dt"] for r in p.rows[-25:]), wait), 0.0)
        v["gap_then_burst_25ev"] = math.log(1 + decayed(lambda _: 1, second)) * gap
        v["gap_burst_count"], v["gap_burst_strength"] = self.gap_burst(p.rows, wait)
        v[f"inter_arrival_cv_{W}"] = ratio(sd(waits), mean(waits))
        longest, *others = sorted((r["dt"] for r in recent), reverse=True)
        v[f"wait_dominance_{V}"] = math.log((longest + 1e-4) / (math.fsum(others) + 1e-4))
        events = decayed(lambda _: 1, fast)
        v[f"message_rate_{fast}"] = math.log((events + 1) / (expected[fast] + 1))

        # adds and cancels
        for L, size, of in ((W, n, total), (V, m, lately)):
            cancels = of("bid_cancel") + of("ask_cancel")
            v[f"add_share_{L}"] = of("add") / size
            v[f"cancel_to_trade_{L}"] = math.log((cancels + 1) / (of("trade") + 1))
        cancels = total("bid_cancel") + total("ask_cancel")
        v[f"cancel_imbalance_{W}"] = (total("bid_cancel") - total("ask_cancel")) / max(cancels, 1)
        v["cancel_size_tick"] = slog(ratio(row["cancelled"], depth))
        v[f"cancelled_volume_{W}"] = slog(ratio(total("cancelled"), depth))
        v[f"largest_cancel_{W}"] = slog(ratio(most("cancelled"), depth))
        v[f"bid_cancel_x_buy_{W}"] = math.sqrt(total("bid_cancel") * total("buy")) / n
        v[f"ask_cancel_x_sell_{W}"] = math.sqrt(total("ask_cancel") * total("sell")) / n

        # the two decaying windows
        for h in (first, second):
            D = {
                name: decayed(lambda x, name=name: x[name], h)
                for name in (
                    "ofi", "trade", "volume", "signed", "buy", "sell", "buy_half", "sell_half",
                    "bid_add", "ask_add", "bid_cancel", "ask_cancel", "changes", "bid_move",
                    "ask_move", "flips", "undo",
                )
            }  # fmt: skip
            events = decayed(lambda _: 1, h)
            E = expected[h]
            net = decayed(lambda x: x["r"], h)
            v[f"return_{h}"] = slog(ratio(net, volatility * math.sqrt(max(E / 2, 1))))
            squares = decayed(lambda x: x["r"] ** 2, h)
            v[f"realised_variance_{h}"] = slog(ratio(squares, variance * max(E, 1)))
            absolute = decayed(lambda x: abs(x["r"]), h)
            v[f"absolute_return_{h}"] = log_rate(ratio(absolute, volatility), 0.3 * E)
            flow = decayed(lambda x: abs(x["ofi"]), h)
            v[f"order_flow_imbalance_{h}"] = ratio(D["ofi"], flow + depth)
            v[f"order_flow_{h}"] = log_rate(
                ratio(flow, depth), E * ratio(scale["flow"].mean, depth)
            )
            v[f"message_rate_{h}"] = log_rate(events, E)
            v[f"trade_rate_{h}"] = log_rate(D["trade"], E * scale["trades"].mean)
            v[f"volume_{h}"] = log_rate(ratio(D["volume"], trade), E * scale["trades"].mean)
            v[f"signed_volume_imbalance_{h}"] = ratio(D["signed"], D["volume"] + trade)
            v[f"net_buys_{h}"] = slog(D["buy"] - D["sell"])
            v[f"add_rate_{h}"] = log_rate(D["bid_add"] + D["ask_add"], E * scale["adds"].mean)
            v[f"net_bid_adds_{h}"] = slog(D["bid_add"] - D["ask_add"])
            bids, asks = D["bid_cancel"], D["ask_cancel"]
            v[f"cancel_rate_{h}"] = log_rate(bids + asks, E * scale["cancels"].mean)
            v[f"net_bid_cancels_{h}"] = slog(bids - asks)
            v[f"cancel_imbalance_{h}"] = (bids - asks) / (bids + asks + 1)
            v[f"bid_cancel_x_buy_{h}"] = math.sqrt(bids * D["buy_half"]) / (events + 1)
            v[f"ask_cancel_x_sell_{h}"] = math.sqrt(asks * D["sell_half"]) / (events + 1)
            v[f"price_change_rate_{h}"] = log_rate(D["changes"], E * scale["changes"].mean)
            v[f"bid_improvement_{h}"] = slog(D["bid_move"])
            v[f"ask_improvement_{h}"] = slog(-D["ask_move"])
            v[f"flips_{h}"] = slog(D["flips"])
            v[f"undos_{h}"] = slog(D["undo"])
        return v

    @staticmethod
    def last_in_a_row(rows: list[dict[str, float]], name: str) -> int:
        """How many rows at the end have it."""
        run = 0
        for r in rows:
            run = run + 1 if r[name] else 0
        return run

    @staticmethod
    def frozen_trades(rows: list[dict[str, float]]) -> int:
        """Trades, since the book last changed, that left it alone and came 0.1 s after others."""
        count = 0
        last: float | None = None
        for r in rows:
            if r["changed"]:
                count = 0
            if r["trade"]:
                apart = last is None or r["t"] - last > 100_000_000
                count += int(r["left"] and apart)
                last = r["t"]
        return count

    @staticmethod
    def gap_burst(rows: list[dict[str, float]], usual_wait: float) -> tuple[float, float]:
        """Events beyond the expected after the gap, up to its length; both multiplied, faded."""
        times = [r["t"] for r in rows]
        gap, end, events = 0.0, times[0], 0
        for before, t in zip([times[0], *times], times, strict=False):
            if (t - before) * NS > gap * 2 ** (-(t - end) * NS / 0.3):
                gap, end, events = (t - before) * NS, t, 0
            else:
                events += 1
        since = (times[-1] - end) * NS
        length, expected = ratio(gap, usual_wait), ratio(since, usual_wait)
        strength = slog(length * events / (1 + expected)) * 2 ** (-since / 0.3)
        return slog(min(length, max(events - expected, 0))), strength

    def last_trades(self, p: Past, usual_size: float, usual_wait: float) -> dict[str, float]:
        """Features of the last trades: of this one, and 0 between trades."""
        most = self.spec.recent_window
        T = f"{most}tr"
        names = ("trade_size_mean", "trade_size_sd", "trade_span", "same_size_share",
                 "pingpong_share")  # fmt: skip
        v = {f"{name}_{T}": 0.0 for name in names}
        v["trade_run"] = 0.0
        if not p.rows[-1]["trade"]:
            return v
        run = 0
        for r in reversed(p.rows):
            if not r["trade"]:
                break
            run += 1
        v["trade_run"] = slog(run)
        trades = [r for r in p.rows if r["trade"]][-most:]
        v[f"trade_size_mean_{T}"] = slog(ratio(mean([r["volume"] for r in trades]), usual_size))
        v[f"trade_size_sd_{T}"] = sd([math.log(r["volume"]) for r in trades])
        v[f"same_size_share_{T}"] = mean([r["same"] for r in trades])
        v[f"pingpong_share_{T}"] = mean([r["pingpong"] for r in trades])
        if len(trades) == most and usual_wait > 0:
            span = (trades[-1]["t"] - trades[0]["t"]) * NS
            share = p.scale["trades"].mean
            if share > 0:
                usual = most * usual_wait / share
                v[f"trade_span_{T}"] = math.log((span / usual + 0.02) / 1.02)
        return v


class VectorOracle(TickOracle):
    """The features of named columns."""

    def update_vector(self, key: int, ts: int, x: list[float]) -> tuple[list[float], bool, int]:
        """Features in the order of the spec, ready, quality."""
        spec = self.spec
        zeros = [0.0] * len(spec.names)
        quality = 0
        if ts <= 0:
            quality |= Quality.NO_TIME
        if not all(map(math.isfinite, x)):
            quality |= Quality.NOT_FINITE
        if not quality and not self.plausible(ts):
            quality = Quality.IMPLAUSIBLE_TIME
        if quality:
            return zeros, False, quality
        p, wait, fresh, late = self.arrive(key, ts)
        p.events += 1
        if "columns" not in p.__dict__:
            p.columns = [  # type: ignore[attr-defined]
                {"slow": (0.0, 0.0, 0), "step": Scale(spec.slow_window)} for _ in x
            ]
        values = {}
        usual = p.scale["dt"].mean * p.scale["waiting"].mean
        p.rows.append({"dt": usual if fresh else wait, **{str(c): v for c, v in enumerate(x)}})
        W, L = f"{spec.short_window}ev", f"{spec.long_window}ev"
        waits = [r["dt"] for r in p.rows[-spec.short_window :]]
        values["inter_arrival"] = values[f"inter_arrival_mean_{W}"] = 0.0
        if usual > 0:
            values["inter_arrival"] = log_ratio(waits[-1], usual)
            values[f"inter_arrival_mean_{W}"] = log_ratio(mean(waits), usual)
        if not fresh:
            if wait > 0:
                p.scale["dt"].add(wait)
            p.scale["waiting"].add(float(wait > 0))
        for c, name in enumerate(spec.columns):
            of = self.column(p.columns[c], [r[str(c)] for r in p.rows])  # type: ignore[attr-defined]
            for key_, value in of.items():
                values[f"{name}.{key_.format(w=W, l=L)}"] = value
        ready = self.is_ready(p)
        late_bit = int(Quality.LATE) if late else 0
        return [values[n] for n in spec.names], ready, late_bit

    def column(self, state: dict[str, Any], xs: list[float]) -> dict[str, float]:
        """Features of one column whose values in the session are `xs`."""
        spec = self.spec
        x = xs[-1]
        slow, variance, known = state["slow"]
        level = slow if known else x
        slow_sd = math.sqrt(variance)
        scale = max(slow_sd, 1e-6 * abs(level), 1e-100)
        clipped = x
        if known >= 16 and slow_sd > 0:
            clipped = min(max(x, level - OUTLIER * slow_sd), level + OUTLIER * slow_sd)
        window, before = xs[-spec.short_window :], xs[-spec.short_window - 1 : -1]
        change = x - xs[-2] if len(xs) > 1 else 0.0
        if len(xs) == 1:
            # the long window outlives no session, but its first value fades in from what was
            state.setdefault("long", (0.0, 0.0))
        fade = 1 / min(len(xs), spec.long_window)
        long_mean, long_variance = state["long"]
        deviation = clipped - long_mean
        long_mean += fade * deviation
        long_variance = (1 - fade) * (long_variance + fade * deviation**2)
        state["long"] = (long_mean, long_variance)
        below = sum(1.0 if b < x else 0.5 if b == x else 0.0 for b in before)
        step = state["step"].mean or scale
        of = {
            "change": slog(change / step),
            "level": slog((x - level) / scale),
            "mean_{w}": slog((mean(window) - level) / scale),
            "sd_{w}": log_ratio(sd(window), scale),
            "mean_{l}": slog((long_mean - level) / scale),
            "sd_{l}": log_ratio(math.sqrt(long_variance), scale),
            "high_{w}": slog(max(x - max(before), 0.0) / scale if before else 0.0),
            "low_{w}": slog(max(min(before) - x, 0.0) / scale if before else 0.0),
            "rank_{w}": 2 * below / len(before) - 1 if before else 0.0,
        }
        known = min(known + 1, spec.slow_window)
        deviation = clipped - slow
        fade = 1 / known
        state["slow"] = (slow + fade * deviation, (1 - fade) * (variance + fade * deviation**2),
                         known)  # fmt: skip
        if change:
            state["step"].add(abs(change))
        return of
