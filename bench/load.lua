-- wrk's side of a round: `wrk ... -s load.lua URL -- METHOD BODY_BYTES PAUSE`.
-- PAUSE: ms that a connection waits before a request, on average; 0: none.
-- The last line of the output is the result, for load.py.

function init(args)
   if tonumber(args[3]) > 0 then
      local twice = 2 * tonumber(args[3])
      math.randomseed(os.time() + tonumber(tostring(args):match("0x(%x+)"), 16))
      -- random, so that the connections do not come in step
      delay = function() return math.random(0, twice) end
   end
   wrk.method = args[1]
   if tonumber(args[2]) > 0 then
      wrk.body = string.rep("x", tonumber(args[2]))
      wrk.headers["Content-Type"] = "application/json"
   end
end

function done(summary, latency, requests)
   local e = summary.errors
   io.write(string.format(
      '{"requests":%d,"us":%d,"bytes":%d,"errors":%d,"p50_us":%d,"p99_us":%d}\n',
      summary.requests, summary.duration, summary.bytes,
      e.connect + e.read + e.write + e.status + e.timeout,
      latency:percentile(50), latency:percentile(99)))
end
