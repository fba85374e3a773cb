request = function() return wrk.format('GET', '/answer/' .. math.random(1, 100000)) end
