wrk.method = "POST"
wrk.body = [==[{"time":1760000000000000000,"tag":"tag-0000001","values":[1.25,2.5,3.75,4.125,5.5,6.25,7.75,8.5,9.25,10.125],"source":"collector-01","seq":1}
]==]
wrk.headers["Content-Type"] = "application/json"
